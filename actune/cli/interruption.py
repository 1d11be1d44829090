"""Interruptions that can't get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a finalizer or a weak reference's callback,
of which a database's connections have many, it is printed and forgotten. A search that was asked to end would go on.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from actune.search import Progress, Reporter

INTERRUPTED = 130
MESSAGE = "actune: interrupted. What a search has measured is stored; `actune resume NAME` goes on."
_SHOW_CURSOR = "\x1b[?25h"


class Interruption:
    """Ctrl-C, and a request to end by SIGTERM, which is the same to a search: everything is stored.

    Once `install` was called, the first asks for an end by KeyboardInterrupt, and `raise_if_asked` does so again. The
    second ends the process there and then: it may be in the middle of ending its workers, for which a worker that is
    stuck in the driver can take long. That loses no more than a SIGKILL would, and workers end when their pipe does.
    """

    def __init__(self) -> None:
        self._is_asked = False

    def install(self) -> None:
        """Handles both signals from here on."""
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked:
            _end_at_once()
        self._is_asked = True
        raise KeyboardInterrupt

    def raise_if_asked(self) -> None:
        """Raises KeyboardInterrupt if an end was asked for and the search goes on all the same."""
        if self._is_asked:
            raise KeyboardInterrupt


def _end_at_once() -> NoReturn:
    # By the descriptor: the signal may have come in the middle of a write to the stream, which can't be entered twice.
    text = f"{_SHOW_CURSOR if sys.stderr.isatty() else ''}\n{MESSAGE}\n"
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
    os._exit(INTERRUPTED)


class InterruptibleReporter:
    """Reports to another reporter, and ends the search at the next stage or trial if that was asked for."""

    def __init__(self, reporter: Reporter, interruption: Interruption) -> None:
        self._reporter = reporter
        self._interruption = interruption

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._interruption.raise_if_asked()
        self._reporter.stage(text)

    def trial_finished(self, progress: Progress) -> None:
        """A trial ended and is stored."""
        self._reporter.trial_finished(progress)
        self._interruption.raise_if_asked()
