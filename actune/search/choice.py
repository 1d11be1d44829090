"""One parameter of a search space, whatever samples it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """A category by its label, a position from 0 to `high`, or a number within a span."""

    name: str
    labels: tuple[str, ...] | None = None
    high: int | None = None
    span: tuple[float, float] | None = None
