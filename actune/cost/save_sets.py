"""The exact frontier of save sets in one checkpointed region: bytes kept against time to recompute.

SAC runs every op of a region again that is not kept, so what an op's output saves does not depend on what else is kept:
the frontier is that of a knapsack, by the labels of Nemhauser and Ullmann ("Discrete Dynamic Programming and Capital
Allocation", Management Science 15, 1969), in which a label that another one beats in both is dropped. The bytes of a
layer's tensors are few multiples of few shapes, so there are few labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from actune.errors import CostError


@dataclass(frozen=True, slots=True)
class SavableOp:
    """An op whose output may be kept.

    Attributes:
        name: as plans name it: `<module FQN below the region>::<op>`, with its occurrence where needed.
        storage_bytes: what keeping its output holds, on top of what is held anyway.
        time_s: what is not spent again if it is kept.
        forced: always kept, such as what chooses experts: chosen anew, it might come out otherwise.
        random: draws random numbers: once one is kept, the later ones are kept too, or they would draw others.
    """

    name: str
    storage_bytes: int
    time_s: float
    forced: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        if self.storage_bytes < 0:
            raise CostError(f"storage_bytes of '{self.name}' is {self.storage_bytes}; expected 0 or more.")
        if not self.time_s >= 0:
            raise CostError(f"time_s of '{self.name}' is {self.time_s}; expected 0 or more.")


@dataclass(frozen=True, slots=True)
class SaveSet:
    """Ops whose outputs are kept.

    Attributes:
        names: in the order of the ops.
        kept_bytes: what they hold.
        recompute_s: of the ops that are not kept.
    """

    names: tuple[str, ...]
    kept_bytes: int
    recompute_s: float


class _Label(NamedTuple):
    """A set of ops: its bytes, the time that it saves, and the ops in it as bits."""

    kept_bytes: int
    saved_s: float
    kept: int


def save_set_frontier(ops: Sequence[SavableOp], *, points: int | None = None) -> tuple[SaveSet, ...]:
    """The sets that no other beats in both bytes and time, from the fewest bytes up.

    Args:
        ops: of one region, in the order of its forward.
        points: thin the frontier to so many, the ends among them; None for all.

    Raises:
        CostError: fewer than two points are asked for.
    """
    if points is not None and points < 2:
        raise CostError(f"points: {points} is too few. Expected 2 or more: the frontier's ends.")
    randoms = [number for number, op in enumerate(ops) if op.random]
    labels: list[_Label] = []
    for first_kept in range(len(randoms) + 1):
        kept = {*randoms[first_kept:], *(number for number, op in enumerate(ops) if op.forced)}
        left_out = set(randoms[:first_kept])
        if not kept & left_out:
            labels += _labels_with(ops, kept, left_out)
    frontier = _not_beaten(labels)
    if points is not None:
        frontier = _thinned(frontier, points)
    total_s = sum(op.time_s for op in ops)
    return tuple(
        SaveSet(
            tuple(op.name for number, op in enumerate(ops) if label.kept >> number & 1),
            label.kept_bytes,
            max(0.0, total_s - label.saved_s),
        )
        for label in frontier
    )


def _labels_with(ops: Sequence[SavableOp], kept: set[int], left_out: set[int]) -> list[_Label]:
    """The frontier of the sets with all of `kept` and none of `left_out` in them."""
    labels = [_Label(0, 0.0, 0)]
    for number, op in enumerate(ops):
        if number in left_out or (number not in kept and op.time_s <= 0):
            continue
        with_op = [
            _Label(label.kept_bytes + op.storage_bytes, label.saved_s + op.time_s, label.kept | 1 << number)
            for label in labels
        ]
        labels = with_op if number in kept else _not_beaten([*labels, *with_op])
    return labels


def _not_beaten(labels: Sequence[_Label]) -> list[_Label]:
    """By bytes, each saving more than the one before it; of equals the one with the earlier ops."""
    frontier: list[_Label] = []
    for label in sorted(labels, key=lambda label: (label.kept_bytes, -label.saved_s, label.kept)):
        if not frontier or label.saved_s > frontier[-1].saved_s:
            frontier.append(label)
    return frontier


def _thinned(frontier: list[_Label], points: int) -> list[_Label]:
    """Drops, one by one, the point without which the curve loses the least area."""
    kept = list(frontier)
    while len(kept) > points:
        losses = [
            (after.kept_bytes - point.kept_bytes) * (point.saved_s - before.saved_s)
            for before, point, after in zip(kept, kept[1:], kept[2:], strict=False)
        ]
        del kept[1 + losses.index(min(losses))]
    return kept
