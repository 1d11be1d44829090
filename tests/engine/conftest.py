"""Processes that a test starts are marked, and none may be left at its end."""

import os
import time
from pathlib import Path

import pytest

MARK = "ACTUNE_TEST_MARK"


def marked_processes(mark):
    """Processes that have the mark in their environment, this one aside."""
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


@pytest.fixture
def mark(monkeypatch, tmp_path):
    """Marks what the test starts; at its end nothing of that may be left."""
    monkeypatch.setenv(MARK, str(tmp_path))
    yield str(tmp_path)
    end_s = time.monotonic() + 20
    while marked_processes(str(tmp_path)):
        assert time.monotonic() < end_s, f"left behind: {marked_processes(str(tmp_path))}"
        time.sleep(0.05)
