"""From the op trace of a layer to save sets worth a trial: the derived treatments of its class.

SAC runs again, in the backward, every op of a region whose output is not kept, up to the last one that makes something
the backward needs. So what a kept output saves is its own op's time, whoever reads it, and nothing where its op comes
later; what an op costs does not depend on what else is kept. See the design, section 6, and `actune.ac.sac` for writes
in place and random ops.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actune.cost.save_sets import SavableOp, SaveSet, save_set_frontier
from actune.op_trace import LayersTraced, LayerTrace, OpRecord, total_time_s
from actune.plan import SavedOp, Treatment

NEGLIGIBLE = 0.01
"""The share of a layer's recompute time that its shortest ops may take together to be left out of save sets."""


KEEPING = 0.5
"""What keeping an output costs SAC, over what it costs SAC to look at an op: the output is detached, wrapped,
and fetched again. Measured in eager mode with torch 2.13 on a CPU: 11 µs beside 23 µs for small ops."""

_ENDS = 2  # of a frontier: to keep nothing and to keep all, which presets do as well or better


@dataclass(frozen=True, slots=True)
class DerivedSet:
    """A save set of a layer class.

    Attributes:
        treatment: selective, with this save set alone.
        kept_bytes: from forward to backward, beside the layer's input and output.
        recompute_time_s: predicted, of the ops that run again and of SAC itself.
    """

    treatment: Treatment
    kept_bytes: int
    recompute_time_s: float


def derived_sets(trace: LayerTrace, *, sac_op_time_s: float, points: int = 6) -> tuple[DerivedSet, ...]:
    """The save sets on the frontier of kept bytes and recompute time, fewest bytes first.

    Those are left out that full AC beats in time, or no AC in bytes. Ops that take next to no time are not named in
    them, so that a plan is read and holds where times differ a little.

    Args:
        trace: of a layer of the class.
        sac_op_time_s: see `actune.op_trace.LayersTraced`.
        points: how many sets at most, 1 or more.
    """
    ops = savable_ops(trace, keep_time_s=KEEPING * sac_op_time_s)
    ops = _without_negligible(ops, NEGLIGIBLE * trace.recompute_time_s)
    kept_anyway = {op.name for op in ops if op.forced}
    # What can't be kept runs again in any case, and SAC looks at each op in any case.
    constant_s = trace.recompute_time_s - sum(op.time_s for op in ops) + sac_op_time_s * trace.recomputed_ops
    found = [
        DerivedSet(treatment_of(save_set), save_set.kept_bytes, save_set.recompute_s + constant_s)
        for save_set in save_set_frontier(ops, points=points + _ENDS)
        if not kept_anyway.issuperset(save_set.names)
    ]
    unbeaten = [
        derived
        for derived in found
        if derived.recompute_time_s < trace.recompute_time_s and derived.kept_bytes < trace.kept_bytes
    ]
    return tuple(unbeaten[:points])


def _without_negligible(ops: Sequence[SavableOp], together_s: float) -> tuple[SavableOp, ...]:
    """Without the shortest ops, as many as together take no longer than that."""
    optional = sorted((op for op in ops if not (op.forced or op.random)), key=lambda op: op.time_s)
    times_s = itertools.accumulate(op.time_s for op in optional)
    dropped = {op.name for op, so_far_s in zip(optional, times_s, strict=True) if so_far_s <= together_s}
    return tuple(op for op in ops if op.name not in dropped)


def derived_treatments(traced: LayersTraced, *, points: int = 6) -> dict[str, tuple[Treatment, ...]]:
    """The derived treatments by layer class, at most `points` each, fewest kept bytes first."""
    return {
        trace.class_name: tuple(
            derived.treatment for derived in derived_sets(trace, sac_op_time_s=traced.sac_op_time_s, points=points)
        )
        for trace in traced.layers
    }


def treatment_of(save_set: SaveSet) -> Treatment:
    """Selective with a region for the whole layer, keeping what the set names and nothing else."""
    return Treatment("selective", save_every_nth_mm=0, save_ops=(), save=save_set.names).canonical()


def savable_ops(trace: LayerTrace, *, keep_time_s: float = 0.0) -> tuple[SavableOp, ...]:
    """The outputs that a plan may keep in a layer of the class, in the order of the forward.

    An op is left out if it makes no storage of its own, if it runs after everything that backward needs, or if SAC
    can't keep it: since an op that is recomputed reads it before it is written over, or since a later random op, which
    would have to be kept too, can't be kept. An op's time is what keeping its output saves: that of the writes to it
    too, which are kept with it. Outputs that the next layer holds as its input cost nothing.

    Args:
        trace: of a layer of the class.
        keep_time_s: what SAC takes to keep an output.
    """
    forward = trace.forward
    uses = _Uses(forward)
    random_from = uses.first_random_to_keep()
    ops: list[tuple[OpRecord, SavableOp]] = []
    for place, op in enumerate(forward):
        writes = uses.writes_to(op)
        is_random = op.random or any(forward[write].random for write in writes)
        is_needed = place < trace.recomputed_ops
        if not uses.can_be_kept(op) or (is_random and place < random_from) or not (is_needed or is_random):
            continue
        held_bytes = sum(o.storage_bytes for o in op.outputs if o.is_new and o.storage in trace.output_storages)
        runs_again = [i for i in (place, *writes) if i < trace.recomputed_ops]
        savable = SavableOp(
            name="",
            storage_bytes=op.new_bytes - held_bytes,
            time_s=max(0.0, total_time_s(forward[i] for i in runs_again) - keep_time_s * len(runs_again)),
            forced=op.chooses,
            random=is_random,
        )
        ops.append((op, savable))
    return _named(ops, forward)


class _Uses:
    """Where in the forward storages are written to, and where they are read."""

    def __init__(self, forward: Sequence[OpRecord]) -> None:
        self._forward = forward
        self._writers: defaultdict[int, list[int]] = defaultdict(list)
        self._readers: defaultdict[int, list[int]] = defaultdict(list)
        for place, op in enumerate(forward):
            for storage in op.writes:
                self._writers[storage].append(place)
            # What is returned again was not read: a view of it, or what was written to.
            for storage in set(op.reads) - {output.storage for output in op.outputs}:
                self._readers[storage].append(place)

    def writes_to(self, op: OpRecord) -> list[int]:
        """Places of the ops that write in place to what the op made."""
        return sorted({place for storage in op.made for place in self._writers[storage]})

    def can_be_kept(self, op: OpRecord) -> bool:
        """Whether a plan can name the op, on every batch, and SAC accepts that."""
        return op.occurrence > 0 and op.new_bytes > 0 and not op.optional and not self._is_read_before_written(op)

    def _is_read_before_written(self, op: OpRecord) -> bool:
        return any(
            self._readers[storage] and self._writers[storage] and self._readers[storage][0] < self._writers[storage][-1]
            for storage in op.made
        )

    def first_random_to_keep(self) -> int:
        """The place after the last random op whose output can't be kept: from there on random outputs may be.

        A kept output is not drawn again, so all draws after it have to be kept as well.
        """
        kept_with: set[int] = set()
        for place, op in enumerate(self._forward):
            if self.can_be_kept(op):
                kept_with |= {place, *self.writes_to(op)}
        alone = (place for place, op in enumerate(self._forward) if op.random and place not in kept_with)
        return 1 + max(alone, default=-1)


def _named(ops: Sequence[tuple[OpRecord, SavableOp]], forward: Sequence[OpRecord]) -> tuple[SavableOp, ...]:
    """Each op under the name that a plan has for it.

    Where what a module runs depends on the batch, all outputs of an op in it are kept together, under a name without a
    number, unless one of them can't be.
    """
    counts = Counter((op.module_fqn, op.op_name) for op in forward if op.occurrence)
    varying = {op.module_fqn for op in forward if op.varies}
    groups: dict[str, list[SavableOp]] = defaultdict(list)
    for op, savable in ops:
        key = (op.module_fqn, op.op_name)
        together = op.module_fqn in varying or counts[key] == 1
        groups[str(SavedOp(*key, None if together else op.occurrence))].append(savable)
    sizes = {str(SavedOp(*key, None)): count for key, count in counts.items()}
    return tuple(
        replace(
            group[0],
            name=name,
            storage_bytes=sum(op.storage_bytes for op in group),
            time_s=sum(op.time_s for op in group),
            forced=any(op.forced for op in group),
            random=any(op.random for op in group),
        )
        for name, group in groups.items()
        if len(group) == sizes.get(name, 1)
    )
