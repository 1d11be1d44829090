"""Waiting for another process that works on the same study."""

from __future__ import annotations

from actune.cli.interruption import Interruption
from actune.search import Reporter


class Patience:
    """Says once whom a search waits for; told again and again, it ends the wait if that was asked for."""

    def __init__(self, reporter: Reporter, interruption: Interruption) -> None:
        self._reporter = reporter
        self._interruption = interruption
        self._has_said = False

    def __call__(self, holder: str) -> None:
        """The study is still held by that process."""
        self._interruption.raise_if_asked()
        if not self._has_said:
            self._has_said = True
            self._reporter.stage(f"waiting for {holder}, which works on this study")
