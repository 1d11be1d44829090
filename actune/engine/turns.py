"""Whose turn it is on a processor that several workers share: times are taken while nothing else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal


class Turns:
    """Requests run beside each other until one is to be timed: it waits until it is alone, and stays so to its end.

    Who waits for a turn goes before requests that have not begun, and so is not kept waiting for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._waiting = 0
        self._is_taken = False

    @contextmanager
    def request(self) -> Iterator[Turn]:
        """The block of one request. It begins once no other one has the turn or waits for it."""
        turn = Turn(self)
        try:
            turn.begin()
            yield turn
        finally:
            turn.end()


class Turn:
    """What one request has of the processor: a share, or all of it."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._state: Literal["new", "sharing", "waiting", "alone", "ended"] = "new"

    def begin(self) -> None:
        """Waits until no other request has the turn or waits for it."""
        turns = self._turns
        with turns._changed:
            turns._changed.wait_for(lambda: not turns._is_taken and not turns._waiting)
            turns._sharing += 1
            self._state = "sharing"

    def take(self) -> None:
        """Waits until no other request runs, and keeps it so until this one ends.

        The processes of one job take it together: whoever asks second waits with the first. If the request ends
        meanwhile, as when another process of the job died, there is nothing to wait for any more.
        """
        turns = self._turns
        with turns._changed:
            if self._state != "sharing":
                turns._changed.wait_for(lambda: self._state != "waiting")
                return
            self._state = "waiting"
            turns._sharing -= 1
            turns._waiting += 1
            turns._changed.notify_all()
            try:
                turns._changed.wait_for(lambda: self._has_ended or not (turns._sharing or turns._is_taken))
            finally:  # an interruption too
                turns._waiting -= 1
                turns._changed.notify_all()
            if not self._has_ended:
                self._state, turns._is_taken = "alone", True

    def end(self) -> None:
        """The request has ended, whatever it had."""
        turns = self._turns
        with turns._changed:
            if self._state == "sharing":
                turns._sharing -= 1
            if self._state == "alone":
                turns._is_taken = False
            self._state = "ended"
            turns._changed.notify_all()

    @property
    def _has_ended(self) -> bool:
        return self._state == "ended"
