"""What is recorded between marks: bytes held, or time. Each device has a recorder of either kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self


class Stretch(NamedTuple):
    """Bytes between two marks, over what was held at the first: see `actune.step_profile.Slot`."""

    delta_bytes: int
    peak_bytes: int


class MemoryRecorder(Protocol):
    """Records what is held between marks within a `with` block. Gradients of earlier steps must be freed before it.

    `stretches` holds once the block has ended: one for each mark, and the one before the first mark first.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def mark(self) -> None:
        """Ends a stretch and begins the next one."""
        ...

    @property
    def stretches(self) -> list[Stretch]:
        """In the order of time."""
        ...


class StepTimer(Protocol):
    """Times the stretches between marks within a `with` block, in the same order as a MemoryRecorder's."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def mark(self) -> None:
        """Ends a stretch and begins the next one."""
        ...

    @property
    def stretches_s(self) -> list[float]:
        """Seconds of each stretch, in the order of time."""
        ...


class ClockTimer:
    """A StepTimer by a clock that is read at each mark.

    Args:
        clock: seconds; on a CPU the process's own, which other programs don't slow down.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._readings_s: list[float] = []

    def __enter__(self) -> Self:
        self._readings_s = [self._clock()]
        return self

    def __exit__(self, *exc: object) -> None:
        self.mark()

    def mark(self) -> None:
        """Reads the clock."""
        self._readings_s.append(self._clock())

    @property
    def stretches_s(self) -> list[float]:
        """Differences of the readings."""
        return [end - start for start, end in zip(self._readings_s, self._readings_s[1:], strict=False)]


def stretch_of(deltas_bytes: list[int]) -> Stretch:
    """The stretch in which these allocations (positive) and frees (negative) happen one after the other."""
    running = highest = 0
    for delta in deltas_bytes:
        running += delta
        highest = max(highest, running)
    return Stretch(running, highest)
