"""Processes that a test starts are marked in their environment, so that those left behind are found."""

import os
from pathlib import Path

MARK = "ACTUNE_TEST_MARK"


def marked_processes(mark):
    """Process ids with the mark, zombies and this process aside."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue  # gone in between, or another user's
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found.append(int(folder.name))
    return found
