"""What a solver is asked, and what it answers: options layer by layer, a choice, its peak and its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from actune.errors import ActuneError
from actune.units import MAX_BYTES

PS_PER_S = 10**12
MAX_TIME_S = 10**6  # of one option: sums over thousands of layers still fit 64 bits in picoseconds
# Sums of the bytes of all layers are exact in 64 bits, and in the floats that bounds are computed in.
MAX_SUM_BYTES = 2**50


class ProblemError(ActuneError):
    """A solver was given numbers that make no problem."""


def picoseconds(time_s: float) -> int:
    """The unit that solvers add and compare times in: integers, so that the order of a sum does not matter."""
    return round(time_s * PS_PER_S)


@dataclass(frozen=True, slots=True)
class Option:
    """What one treatment costs at one layer.

    Attributes:
        kept_bytes: held from the layer's forward until its backward. May be negative: constants are folded into it.
        need_bytes: the highest that is held while the layer itself runs, forward or backward, recomputation included,
            over the sum of `kept_bytes` of the layers before it.
        time_s: forward, backward and recomputation.
    """

    kept_bytes: int
    need_bytes: int
    time_s: float

    def __post_init__(self) -> None:
        for name, size_bytes in (("kept_bytes", self.kept_bytes), ("need_bytes", self.need_bytes)):
            if abs(size_bytes) >= MAX_SUM_BYTES:
                raise ProblemError(
                    f"{name} of an option is {size_bytes}; solvers expect less than 2^50 bytes. Is it in bytes?"
                )
        if not 0 <= self.time_s < MAX_TIME_S:
            raise ProblemError(
                f"time_s of an option is {self.time_s}; solvers expect 0 ≤ time_s < {MAX_TIME_S}. Is it in seconds?"
            )


@dataclass(frozen=True, slots=True)
class LayerChoices:
    """The options of one layer, in the order of its menu.

    Attributes:
        after_bytes: the highest that is held in what runs between this layer's forward and the next one's, or the loss,
            or in the same stretch of the backward: over the sum of `kept_bytes` up to and with this layer.
        tie: layers with the same tie take the same option: one module that is called several times.
    """

    options: tuple[Option, ...]
    after_bytes: int
    tie: str | None = None

    def __post_init__(self) -> None:
        if not self.options:
            raise ProblemError("a layer has no options; solvers expect one at least. Drop the layer from the problem.")
        if abs(self.after_bytes) >= MAX_SUM_BYTES:
            raise ProblemError(
                f"after_bytes of a layer is {self.after_bytes}; solvers expect less than 2^50 bytes. Is it in bytes?"
            )


@dataclass(frozen=True, slots=True)
class Problem:
    """A step through layers 1 to L, the loss, and layers L to 1: one option is to be chosen for each layer.

    With K_i the sum of `kept_bytes` over the layers 1 to i, the peak of a choice p is the highest of `floor_bytes`, all
    K_{i-1} + need_i(p_i) and all K_i + after_i. Its time is `base_time_s` and the sum of its options' times.

    Attributes:
        floor_bytes: the peak of what no option changes, such as the optimizer: no choice has a lower one.
        base_time_s: the time of what no option changes.
    """

    layers: tuple[LayerChoices, ...]
    floor_bytes: int
    base_time_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.base_time_s < MAX_TIME_S:
            raise ProblemError(f"base_time_s is {self.base_time_s}; solvers expect 0 ≤ base_time_s < {MAX_TIME_S}.")
        if abs(self.floor_bytes) >= MAX_BYTES:
            raise ProblemError(f"floor_bytes is {self.floor_bytes}; solvers expect less than 2^63 bytes.")
        sum_bytes = sum(max(abs(option.kept_bytes) for option in layer.options) for layer in self.layers)
        if sum_bytes >= MAX_SUM_BYTES:
            raise ProblemError(
                f"the layers may keep {sum_bytes} bytes together; solvers expect less than 2^50. Are all in bytes?"
            )
        counts: dict[str, int] = {}
        for number, layer in enumerate(self.layers):
            if layer.tie is not None:
                expected = counts.setdefault(layer.tie, len(layer.options))
                if len(layer.options) != expected:
                    raise ProblemError(
                        f"layer {number} is tied to '{layer.tie}' and has {len(layer.options)} options where another "
                        f"one of that tie has {expected}; tied layers take the same option, so give them one menu."
                    )

    def ties(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the layers that must take the same option, group by group; groups of one are left out."""
        groups: dict[str, list[int]] = {}
        for number, layer in enumerate(self.layers):
            if layer.tie is not None:
                groups.setdefault(layer.tie, []).append(number)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def peak_bytes(self, choice: Sequence[int]) -> int:
        """The peak of a choice: an option's number for each layer."""
        peak_bytes, kept_bytes = self.floor_bytes, 0
        for layer, number in zip(self.layers, choice, strict=True):
            option = layer.options[number]
            peak_bytes = max(peak_bytes, kept_bytes + option.need_bytes)
            kept_bytes += option.kept_bytes
            peak_bytes = max(peak_bytes, kept_bytes + layer.after_bytes)
        return peak_bytes

    def time_ps(self, choice: Sequence[int]) -> int:
        """The time of a choice in picoseconds: what solvers compare."""
        options = (layer.options[number] for layer, number in zip(self.layers, choice, strict=True))
        return picoseconds(self.base_time_s) + sum(picoseconds(option.time_s) for option in options)


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice within the budget, and how far from the optimum it can be.

    Attributes:
        choice: the number of each layer's option.
        time_s: to the picosecond, which is the unit that times are compared in.
        bound_s: no choice within the budget is faster than this; `time_s` itself where the choice is proven optimal.
        solver: what found it: `exact`, `greedy`, `exhaustive` or `ilp`.
    """

    choice: tuple[int, ...]
    peak_bytes: int
    time_s: float
    bound_s: float
    solver: str

    @property
    def gap(self) -> float:
        """How much slower than the optimum it may be, relative to the bound: 0 is proven optimal."""
        if self.time_s <= self.bound_s:
            return 0.0
        return math.inf if self.bound_s <= 0 else self.time_s / self.bound_s - 1


def optimal(problem: Problem, choice: Sequence[int], solver: str) -> Solution:
    """The solution of a choice that is proven optimal."""
    time_s = problem.time_ps(choice) / PS_PER_S
    return Solution(tuple(choice), problem.peak_bytes(choice), time_s, time_s, solver)
