"""Selective activation checkpointing: which op outputs of a region are kept.

The every-nth-matmul rule, the save list and the filter by shape are torchtitan's (PRs #1380, #1672, #2357, #2445,
#3146); filters by name, `save`, and the treatment of in-place and random ops are actune's.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from types import FunctionType, SimpleNamespace, TracebackType
from typing import Any

import torch
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from actune.ac import ops
from actune.ac.module_path import ModulePath, TracedModulePath
from actune.ac.ops import (
    CHOOSING_OPS,
    COUNTED_MATMULS,
    MATMULS,
    Op,
    draws_random_numbers,
    op_name,
    written_arguments,
)
from actune.ac.save_rules import RegionMemory, SaveRules
from actune.errors import PlanError

SAVE = CheckpointPolicy.MUST_SAVE
RECOMPUTE = CheckpointPolicy.PREFER_RECOMPUTE


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
        self.copies: dict[int, torch.Tensor] = {}
        self.rewritten_storages: set[int] = set()
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
            decision = self._decide_write(op, written, args, kwargs)
            if draws_random_numbers(op, args, kwargs):
                if decision is RECOMPUTE and self._random_output_kept:
                    raise PlanError(
                        f"save: {op_name(op)} draws random numbers in place after the output of another random op is "
                        "kept. That one would not be drawn again, so this one would be recomputed with other numbers. "
                        "Leave random ops out of what is saved."
                    )
                self._random_output_kept = decision is SAVE
            return decision
        keep = self._is_named(op) if rules.saved else False
        if not keep:
            # The rule is asked first, since it counts.
            keep = self._is_kept_by_rule(op, args, kwargs) or self._routes(op, args)
        if draws_random_numbers(op, args, kwargs):
            # A kept output is not drawn again, so every later draw of the recomputation would shift: keep those too.
            keep = keep or self._random_output_kept
            self._random_output_kept = keep
        return SAVE if keep else RECOMPUTE

    def _is_named(self, op: Op) -> bool:
        assert self._path is not None
        key = (self._path.innermost(), op_name(op))
        if not self._memory.first_call_done:
            self._memory.ops_seen.setdefault(key[0], set()).add(key[1])
        if key not in self._rules.saved:
            return False
        self._occurrences[key] += 1
        wanted = self._rules.saved[key]
        if wanted is None or self._occurrences[key] in wanted:
            self._memory.unmatched.discard((*key, None if wanted is None else self._occurrences[key]))
            return True
        return False

    def _is_kept_by_rule(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        rules = self._rules
        if op in MATMULS:
            if self._is_filtered(op, args):
                return False
            if op in COUNTED_MATMULS:
                self._matmuls_counted += 1
                is_nth = rules.save_every_nth_mm > 0 and (self._matmuls_counted - 1) % rules.save_every_nth_mm == 0
                return is_nth and op in rules.save_ops
            return rules.save_every_nth_mm > 0 and op in rules.save_ops
        # torchtitan #1672: what came from the card to the host is not fetched twice (the sizes of an all-to-all).
        if op is torch.ops.aten._to_copy.default and args[0].is_cuda:
            return torch.device(kwargs.get("device") or args[0].device).type == "cpu" or op in rules.save_ops
        return op in rules.save_ops

    def _is_filtered(self, op: Op, args: tuple[Any, ...]) -> bool:
        rules = self._rules
        if rules.filter_modules and self._path is not None and self._path.innermost() in rules.filter_modules:
            return True
        return (
            op in COUNTED_MATMULS and bool(rules.filter_shapes) and _right_hand_shape(op, args) in rules.filter_shapes
        )

    def _routes(self, op: Op, args: tuple[Any, ...]) -> bool:
        """Whether the op chooses experts, or makes the scores to choose by and is not filtered: see `routing`."""
        if op in self._rules.choosing_ops:
            return True
        return (
            op in MATMULS
            and bool(self._rules.router_modules)
            and self._path is not None
            and self._path.innermost() in self._rules.router_modules
            and not self._is_filtered(op, args)
        )

    def _decide_write(
        self, op: Op, written: tuple[tuple[int, str], ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> CheckpointPolicy:
        """An op that writes to a kept output is kept with it; no other op that writes is.

        Weights that a router's `topk` returned are often divided in place by their sum, which was read from them
        before. They are few, so they are kept as a copy of before, and the division is done again.
        """
        for position, name in written:
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in tree_iter(value):
                if not isinstance(tensor, torch.Tensor):
                    continue
                saved = self._saved_storages.get(_storage_key(tensor))
                if saved is None:
                    continue
                if _storage_key(tensor) in self.copies:
                    self._memory.writes_to_saved = True
                    self.rewritten_storages.add(_storage_key(tensor))
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
                    if op in CHOOSING_OPS:
                        self.copies.setdefault(_storage_key(tensor), tensor.clone())
        elif self._saved_storages:
            # What is returned again was not read. Schemas don't tell: `_unsafe_view` of a Linear's output is no view.
            returned = {_storage_key(tensor) for tensor in tree_iter(output) if isinstance(tensor, torch.Tensor)}
            for tensor in tree_iter((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and (key := _storage_key(tensor)) not in returned:
                    saved = self._saved_storages.get(key)
                    if saved is not None:
                        saved.read_by = op_name(op)


class Keeps:
    """Which outputs of one call of a region the rules would keep, op by op, without a region being there.

    The storages of all outputs asked about need addresses of their own for as long as this is used.
    """

    def __init__(self, rules: SaveRules, path: ModulePath) -> None:
        """Args:
        rules: the region's.
        path: tells the running module.
        """
        self._decisions = _Decisions(rules, path, RegionMemory())

    def __call__(self, op: Op, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this output, the next one in the order of the forward, is kept.

        Raises:
            PlanError: the rules can't be applied to the region.
        """
        if op in SAC_IGNORED_OPS:
            return False
        context = SelectiveCheckpointContext(is_recompute=False, op_output=output)
        return self._decisions(context, op, *args, **kwargs) is SAVE


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
            if self._decisions.rewritten_storages:
                self._put_copies()
            if self._decisions.tied_storages:
                self._accept_tied_writes()
            self._decisions.copies.clear()

    def _accept_tied_writes(self) -> None:
        # PyTorch refuses a cached tensor whose version has moved. These writes are replayed from the cache, never run
        # again, so the version after them is the right one for what is fetched first: what was cached before any write.
        # A write after the region is still refused there. Each replayed write moves the version of what comes later.
        entries = self._entries()
        for key in self._decisions.tied_storages:
            before_writes = min(wrapped.version for wrapped in entries[key])
            for wrapped in entries[key]:
                wrapped.version = wrapped.val._version if wrapped.version == before_writes else None

    def _put_copies(self) -> None:
        entries = self._entries()
        for key in self._decisions.rewritten_storages:
            for wrapped in entries[key]:
                wrapped.val = self._decisions.copies[key]
                wrapped.version = wrapped.val._version

    def _entries(self) -> defaultdict[int, list[Any]]:
        """PyTorch's wrappers of what it caches, by storage."""
        entries: defaultdict[int, list[Any]] = defaultdict(list)
        for by_index in self._caching_mode.storage.values():
            for wrapped in tree_iter(list(by_index.values() if isinstance(by_index, dict) else by_index)):
                tensor = getattr(wrapped, "val", None)
                if isinstance(tensor, torch.Tensor):
                    entries[_storage_key(tensor)].append(wrapped)
        return entries


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


class EagerContexts:
    """The `context_fn` of `torch.utils.checkpoint.checkpoint` for one region. An object, so that models can be copied.

    Args:
        rules: the region's rules.
        path: tells the running module; None if no rule asks.
        memory: what the region learns, shared over its calls.
    """

    def __init__(self, rules: SaveRules, path: ModulePath | None, memory: RegionMemory) -> None:
        self._rules = rules
        self._path = path
        self._memory = memory

    def __call__(self) -> Contexts:
        """The contexts of one forward and of its recomputation."""
        if self._path is not None:
            self._path.restart()
        decisions = _Decisions(self._rules, self._path, self._memory)
        caching_mode, cached_mode = create_selective_checkpoint_contexts(decisions)
        return _ForwardContext(caching_mode, decisions, self._memory), cached_mode


def _cache_hash(rules: SaveRules) -> str | None:
    """What decides beside the graph, for the key of PyTorch's cache of traced graphs (AOTAutogradCache).

    None, for no caching, where what is kept is named: two graphs may differ in nothing but their modules' names.
    Routers are named too, but graphs that are alike to an op route at the same one.
    """
    if rules.saved or rules.filter_modules:
        return None
    values = [getattr(rules, field.name) for field in fields(rules)]
    told = [sorted(map(str, value)) if isinstance(value, frozenset) else value for value in values]
    return sha256(repr((told, *_decided_by())).encode()).hexdigest()


@cache
def _decided_by() -> tuple[str, ...]:
    """The source of what makes rules into decisions: a cache may outlive this version of it."""
    return tuple(inspect.getsource(module) for module in (sys.modules[__name__], ops))


_code_numbers = itertools.count()
_cacheable = SimpleNamespace()  # by name: where the pickle of a graph's cache key finds the functions that it names


def traced_context_fn(rules: SaveRules, path: TracedModulePath | None, memory: RegionMemory) -> Callable[[], Contexts]:
    """The same for checkpoints that torch.compile traces.

    The compiler functionalises writes, so none is looked at here, and takes no other contexts than PyTorch's own.
    """
    cache_hash = _cache_hash(rules)
    name = f"context_fn_{next(_code_numbers) if cache_hash is None else cache_hash}"
    if hasattr(_cacheable, name):
        made: Callable[[], Contexts] = getattr(_cacheable, name)
        return made

    def context_fn() -> Contexts:
        decisions = _Decisions(rules, path, memory)
        decisions._track_storages = False
        caching_mode, cached_mode = create_selective_checkpoint_contexts(decisions)
        return caching_mode, cached_mode

    # Dynamo tells functions apart by their code alone: were it one code, layers under different rules would all run
    # what was compiled for the first of them.
    code = context_fn.__code__.replace(co_name=name)
    distinct = FunctionType(code, context_fn.__globals__, name, None, context_fn.__closure__)
    if cache_hash is not None:
        distinct.cache_hash = cache_hash  # type: ignore[attr-defined]  # what AOTAutogradCache asks for
        distinct.__qualname__ = f"_cacheable.{name}"
        setattr(_cacheable, name, distinct)
    return distinct
