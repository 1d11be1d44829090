"""Processes that a test starts are marked in their environment, so that those left behind are found."""

import os
import time
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


def left_behind(find, *, limit_s=20.0):
    """What `find()` still finds after a while: what was killed may take a moment to be gone if nobody waits for it."""
    end_s = time.monotonic() + limit_s
    while (found := find()) and time.monotonic() < end_s:
        time.sleep(0.02)
    return found
