"""Processes that a target started and that outlive it: found by a mark in their environment, and ended.

A worker is the leader of a session, and what it starts dies with its process group. A child that makes a session of its
own, as daemons do, leaves the group; it keeps the environment that it was started with.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

MARK = "ACTUNE_WORKER"
"""The variable whose value is one worker's alone."""


def kill_marked(value: str) -> None:
    """Ends all processes of this user that have the mark, but for this one. Does nothing where there is no /proc.

    Args:
        value: of the mark.
    """
    entry = f"{MARK}={value}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is another user's
            if int(folder.name) != os.getpid() and entry in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
