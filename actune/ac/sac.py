"""Selective activation checkpointing: which op outputs of a region are kept.

The every-nth-matmul rule, the save list and the filter by shape are torchtitan's (PRs #1380, #1672, #2357, #2445,
#3146); filters by name, `save`, and the treatment of in-place and random ops are actune's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts

from actune.ac.module_path import ModulePath, TracedModulePath
from actune.ac.ops import COUNTED_MATMULS, MATMULS, Op, draws_random_numbers, is_view, op_name, written_arguments
from actune.errors import PlanError

SAVE = CheckpointPolicy.MUST_SAVE
RECOMPUTE = CheckpointPolicy.PREFER_RECOMPUTE


@dataclass(frozen=True, slots=True)
class SaveRules:
    """A treatment's SAC knobs, resolved against one region.

    Attributes:
        save_every_nth_mm: as in the treatment.
        save_ops: the ops of `save_ops`.
        saved: of `save`: (module FQN below the region, op name) to its occurrences, None for all.
        filter_shapes: (in, out) of the filtered Linears, as a matmul sees its right-hand side.
        filter_modules: FQNs below the region of the Linears filtered by name.
    """

    save_every_nth_mm: int
    save_ops: frozenset[Op]
    saved: dict[tuple[str, str], frozenset[int] | None]
    filter_shapes: frozenset[tuple[int, int]]
    filter_modules: frozenset[str]

    @property
    def need_module_path(self) -> bool:
        """Whether a rule asks in which module an op runs."""
        return bool(self.saved or self.filter_modules)


@dataclass(slots=True)
class RegionMemory:
    """What a region learns over its calls.

    Attributes:
        first_call_done: the calls after the first skip what only the first needs to find out.
        writes_to_saved: an op of the region writes in place to an output that is kept.
        unmatched: entries of `save` that no op has matched so far.
        ops_seen: op names by module, of the first call, for the message about unmatched entries.
    """

    first_call_done: bool = False
    writes_to_saved: bool = False
    unmatched: set[tuple[str, str]] = field(default_factory=set)
    ops_seen: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


class _Decisions:
    """The policy function of one call of a region. Counters start at each call, as in torchtitan."""

    def __init__(self, rules: SaveRules, path: ModulePath | TracedModulePath | None, memory: RegionMemory) -> None:
        self._rules = rules
        self._path = path
        self._memory = memory
        self._matmuls_counted = 0
        self._occurrences: Counter[tuple[str, str]] = Counter()
        self._random_output_kept = False
        self._track_storages = not memory.first_call_done or memory.writes_to_saved
        self._saved_storages: dict[int, _SavedStorage] = {}
        self.tied_storages: set[int] = set()
        # Versions of torch that call the policy in recomputation too get the decisions of the forward again.
        self._made: defaultdict[Op, list[CheckpointPolicy]] = defaultdict(list)
        self._replayed: Counter[Op] = Counter()

    def __call__(self, ctx: SelectiveCheckpointContext, op: Op, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if ctx.is_recompute:
            decision = self._made[op][self._replayed[op]]
            self._replayed[op] += 1
            return decision
        decision = self._decide(op, args, kwargs)
        self._made[op].append(decision)
        if self._track_storages:
            self._note_storages(op, decision, ctx.op_output, args, kwargs)
        return decision

    def _decide(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CheckpointPolicy:
        rules = self._rules
        written = written_arguments(op)
        if written:
            return self._decide_write(op, written, args, kwargs)
        keep = self._is_named(op) if rules.saved else False
        if not keep:
            keep = self._is_kept_by_rule(op, args, kwargs)
        if draws_random_numbers(op, args, kwargs):
            # A kept output is not drawn again, so every later draw of the recomputation would shift: keep those too.
            keep = keep or self._random_output_kept
            self._random_output_kept = keep
        return SAVE if keep else RECOMPUTE

    def _is_named(self, op: Op) -> bool:
        assert self._path is not None
        key = (self._path.innermost(), op_name(op))
        if not self._memory.first_call_done:
            self._memory.ops_seen[key[0]].add(key[1])
        if key not in self._rules.saved:
            return False
        self._occurrences[key] += 1
        wanted = self._rules.saved[key]
        if wanted is None or self._occurrences[key] in wanted:
            self._memory.unmatched.discard(key)
            return True
        return False

    def _is_kept_by_rule(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        rules = self._rules
        if op in MATMULS:
            if rules.filter_modules and self._path is not None and self._path.innermost() in rules.filter_modules:
                return False
            if op in COUNTED_MATMULS:
                if rules.filter_shapes and _right_hand_shape(op, args) in rules.filter_shapes:
                    return False
                self._matmuls_counted += 1
                is_nth = rules.save_every_nth_mm > 0 and (self._matmuls_counted - 1) % rules.save_every_nth_mm == 0
                return is_nth and op in rules.save_ops
            return rules.save_every_nth_mm > 0 and op in rules.save_ops
        # torchtitan #1672: what came from the card to the host is not fetched twice (the sizes of an all-to-all).
        if op is torch.ops.aten._to_copy.default and args[0].is_cuda:
            return torch.device(kwargs.get("device") or args[0].device).type == "cpu" or op in rules.save_ops
        return op in rules.save_ops

    def _decide_write(
        self, op: Op, written: tuple[tuple[int, str], ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> CheckpointPolicy:
        """An op that writes to a kept output is kept with it; no other op that writes is."""
        for position, name in written:
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in tree_iter(value):
                if not isinstance(tensor, torch.Tensor):
                    continue
                saved = self._saved_storages.get(_storage_key(tensor))
                if saved is None:
                    continue
                if saved.read_by is not None:
                    raise PlanError(
                        f"save: the output of {saved.op_name} can't be kept: {saved.read_by} reads it and then "
                        f"{op_name(op)} writes over it, so recomputing the first would see what the second wrote. "
                        "Leave it out of what is saved."
                    )
                self._memory.writes_to_saved = True
                self.tied_storages.add(_storage_key(tensor))
                return SAVE
        return RECOMPUTE

    def _note_storages(
        self, op: Op, decision: CheckpointPolicy, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if decision is SAVE:
            for tensor in tree_iter(output):
                if isinstance(tensor, torch.Tensor):
                    self._saved_storages.setdefault(_storage_key(tensor), _SavedStorage(op_name(op)))
        elif self._saved_storages and not is_view(op):
            for tensor in tree_iter((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and (saved := self._saved_storages.get(_storage_key(tensor))):
                    saved.read_by = op_name(op)


@dataclass(slots=True)
class _SavedStorage:
    op_name: str
    read_by: str | None = None


def _storage_key(tensor: torch.Tensor) -> int:
    # Kept outputs stay alive for the region's call, so their storages' addresses are not used again.
    return int(tensor.untyped_storage()._cdata)


def _right_hand_shape(op: Op, args: tuple[Any, ...]) -> tuple[int, int]:
    rows, columns = args[1].shape
    return (columns, rows) if op is torch.ops.aten.linear.default else (rows, columns)


class _ForwardContext:
    """PyTorch's caching mode, which in the end accepts the in-place writes that the decisions tied to kept outputs."""

    def __init__(self, caching_mode: Any, decisions: _Decisions, memory: RegionMemory) -> None:
        self._caching_mode = caching_mode
        self._decisions = decisions
        self._memory = memory

    def __enter__(self) -> None:
        self._caching_mode.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._caching_mode.__exit__(kind, error, traceback)
        if kind is None:
            self._memory.first_call_done = True
            if self._decisions.tied_storages:
                self._accept_tied_writes()

    def _accept_tied_writes(self) -> None:
        # PyTorch refuses a cached tensor whose version has moved. These writes are replayed from the cache, never run
        # again, so the version after them is the right one; a write after the region is still refused.
        for by_index in self._caching_mode.storage.values():
            entries = by_index.values() if isinstance(by_index, dict) else by_index
            for wrapped in tree_iter(list(entries)):
                tensor = getattr(wrapped, "val", None)
                if isinstance(tensor, torch.Tensor) and _storage_key(tensor) in self._decisions.tied_storages:
                    wrapped.version = tensor._version


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def selective_context_fn(
    rules: SaveRules, path: ModulePath | TracedModulePath | None, memory: RegionMemory, *, compiled: bool
) -> Callable[[], Contexts]:
    """The `context_fn` of `torch.utils.checkpoint.checkpoint` for a region.

    Args:
        rules: the region's rules.
        path: tells the running module; None if no rule asks.
        memory: what the region learns, shared over its calls.
        compiled: the checkpoint is traced by torch.compile, which functionalises writes and takes no other context
            than PyTorch's own.
    """

    def context_fn() -> Contexts:
        if path is not None:
            path.restart()
        decisions = _Decisions(rules, path, memory)
        if compiled:
            decisions._track_storages = False
        caching_mode, cached_mode = create_selective_checkpoint_contexts(decisions)
        if compiled:
            return caching_mode, cached_mode
        return _ForwardContext(caching_mode, decisions, memory), cached_mode

    return context_fn
