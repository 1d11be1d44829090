"""Processes that a test starts are marked, and none may be left at its end."""

import time

import pytest

from tests.processes import MARK, marked_processes


@pytest.fixture
def mark(monkeypatch, tmp_path):
    """Marks what the test starts; at its end nothing of that may be left."""
    monkeypatch.setenv(MARK, str(tmp_path))
    yield str(tmp_path)
    end_s = time.monotonic() + 20
    while marked_processes(str(tmp_path)):
        assert time.monotonic() < end_s, f"left behind: {marked_processes(str(tmp_path))}"
        time.sleep(0.05)
