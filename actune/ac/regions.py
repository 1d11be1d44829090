"""Regions: modules that are checkpointed as one unit."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from actune.ac.module_path import ModulePath, TracedModulePath
from actune.ac.ops import CHOOSING_OPS, Op, check_op_exists, resolve_save_ops
from actune.ac.recall import RoutingContexts
from actune.ac.routing import NO_ROUTING, Routing
from actune.ac.sac import EagerContexts, traced_context_fn
from actune.ac.save_rules import RegionMemory, SaveRules
from actune.errors import PlanError
from actune.plan import WHOLE_LAYER, CompileMode, SavedOp, Treatment


class Region(CheckpointWrapper):
    """PyTorch's checkpoint wrapper, invisible in FQNs.

    `CheckpointWrapper` keeps state_dict keys, but `named_parameters` and `named_modules` of the model around it would
    show a level `_checkpoint_wrapped_module`. This one hands the walk on to the wrapped module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Writes an attribute where reading it finds it: what only the wrapped module has is set there."""
        wrapped = self.__dict__.get("_modules", {}).get("_checkpoint_wrapped_module")
        if name in self.__dict__ or hasattr(type(self), name) or not hasattr(wrapped, name):
            super().__setattr__(name, value)
        else:
            setattr(wrapped, name, value)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The wrapped module's own walk, as if it stood here itself.

        After `fully_shard`, which gives what it shards a class of its own, the region comes first: FSDP2 finds its
        modules by this walk.
        """
        memo = set() if memo is None else memo
        if type(self) not in (Region, SelectiveRegion) and self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
        yield from self._checkpoint_wrapped_module.named_modules(memo, prefix, remove_duplicate)


class SelectiveRegion(Region):
    """A region under SAC, which after its first call knows whether everything that `save` names was there."""

    def __init__(self, module: nn.Module, *, fqn: str, memory: RegionMemory, **checkpoint_kwargs: Any) -> None:
        super().__init__(module, **checkpoint_kwargs)
        # Long names: an attribute here hides the wrapped module's of the same name.
        self._region_fqn = fqn
        self._region_memory = memory

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises PlanError after a first call in which an entry of `save` matched no op."""
        output = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self._region_memory.first_call_done:
            self._region_memory.check_all_matched(self._region_fqn)
        return output


def checkpoint_kwargs(treatment: Treatment) -> dict[str, Any]:
    """Keyword arguments for `torch.utils.checkpoint.checkpoint`, but for SAC's own."""
    return {"early_stop": treatment.early_stop, "preserve_rng_state": treatment.preserve_rng_state}


def resolve_rules(
    treatment: Treatment, region_module: nn.Module, region_fqn: str, routing: Routing = NO_ROUTING
) -> SaveRules:
    """The SAC knobs against one region.

    `save` entries whose module this region does not have are left out here; that each matches somewhere is checked
    over the whole rule.

    Raises:
        PlanError: an op that torch does not have, or a filter that matches a module that is no Linear.
    """
    modules = dict(region_module.named_modules())
    saved: dict[tuple[str, str], frozenset[int] | None] = {}
    for entry in map(SavedOp.parse, treatment.save):
        check_op_exists(entry.op_name)
        if entry.module_fqn != WHOLE_LAYER and entry.module_fqn not in modules:
            continue
        key = (entry.module_fqn, entry.op_name)
        earlier = saved.get(key, frozenset())
        if entry.occurrence is None or earlier is None:
            saved[key] = None
        else:
            saved[key] = earlier | {entry.occurrence}
    shapes: set[tuple[int, int]] = set()
    names: set[str] = set()
    for fqn, linear in filtered_linears(treatment, region_module, region_fqn):
        if treatment.filter_by == "shape":
            out_features, in_features = linear.weight.shape
            shapes.add((in_features, out_features))
        else:
            names.add(fqn or WHOLE_LAYER)
    choosing_ops, router_modules = routing_rules(treatment, region_module, routing)
    return SaveRules(
        treatment.save_every_nth_mm,
        resolve_save_ops(treatment.save_ops),
        saved,
        frozenset(shapes),
        frozenset(names),
        choosing_ops,
        router_modules,
    )


def routing_rules(
    treatment: Treatment, region_module: nn.Module, routing: Routing
) -> tuple[frozenset[Op], frozenset[str]]:
    """What SAC keeps of a region's routing: the ops that choose experts, and the modules of its routers.

    `topk` chooses experts by whatever name; other such ops have other uses outside of mixtures.
    """
    if not treatment.save_routing:
        return frozenset(), frozenset()
    modules = dict(region_module.named_modules())
    inside = {
        fqn or WHOLE_LAYER
        for router in routing.routers
        for fqn in modules
        if router == WHOLE_LAYER or fqn == router or fqn.startswith(f"{router}.")
    }
    return CHOOSING_OPS if routing else frozenset({torch.ops.aten.topk.default}), frozenset(inside)


def filtered_linears(treatment: Treatment, region_module: nn.Module, region_fqn: str) -> list[tuple[str, nn.Linear]]:
    """The Linears of the region whose full FQN contains one of `filter_fqns`, by FQN below the region.

    Raises:
        PlanError: a match is no `nn.Linear`, as in torchtitan.
    """
    found = []
    for fqn, module in region_module.named_modules():
        full_fqn = f"{region_fqn}.{fqn}" if fqn else region_fqn
        matching = [part for part in treatment.filter_fqns if part in full_fqn]
        if not matching:
            continue
        if not isinstance(module, nn.Linear):
            linears = [f for f, m in region_module.named_modules() if isinstance(m, nn.Linear)]
            raise PlanError(
                f"filter_fqns: '{matching[0]}' matches {full_fqn}, which is a {type(module).__name__}, no nn.Linear. "
                f"The Linears of {region_fqn} are: {', '.join(linears) or 'none'}."
            )
        found.append((fqn, module))
    return found


class RegionFactory:
    """Makes the regions of a plan. Compiled regions under like rules share one context_fn, and so compiled code."""

    def __init__(self, mode: CompileMode) -> None:
        """Args: mode: the plan's. What is compiled inside its region is out of reach, so there no routing is kept."""
        self._is_traced = mode in ("layer", "model")
        self._is_opaque = mode in ("inside", "inside+ops")
        self._context_fns: dict[Hashable, Any] = {}
        self._traced: list[tuple[str, RegionMemory]] = []
        self._hooked: list[ModulePath | RoutingContexts] = []

    def make(self, module: nn.Module, fqn: str, treatment: Treatment, routing: Routing) -> Region:
        """The region for a module.

        Raises:
            PlanError: the treatment does not fit the module.
        """
        if treatment.policy == "full":
            if not routing or not treatment.save_routing or self._is_opaque:
                return Region(module, **checkpoint_kwargs(treatment))
            if not self._is_traced:
                contexts = RoutingContexts(module, fqn, routing)
                self._hooked.append(contexts)
                return Region(module, context_fn=contexts, **checkpoint_kwargs(treatment))
            treatment = replace(treatment, policy="selective", save_every_nth_mm=0, save_ops=())
        rules = resolve_rules(treatment, module, fqn, routing)
        memory = RegionMemory(unmatched=rules.named())
        if self._is_traced:
            key = (
                treatment,
                tuple(sorted(rules.saved)),
                rules.filter_shapes,
                rules.filter_modules,
                rules.choosing_ops,
                rules.router_modules,
            )
            if key not in self._context_fns:
                path = TracedModulePath() if rules.need_module_path else None
                self._context_fns[key] = traced_context_fn(rules, path, memory)
                self._traced.append((fqn, memory))
            return Region(module, context_fn=self._context_fns[key], **checkpoint_kwargs(treatment))
        eager_path = ModulePath(module, rules.followed_modules) if rules.need_module_path else None
        if eager_path is not None and not self._is_opaque:
            self._hooked.append(eager_path)
        context_fn = EagerContexts(rules, eager_path, memory)
        return SelectiveRegion(module, fqn=fqn, memory=memory, context_fn=context_fn, **checkpoint_kwargs(treatment))

    def attach(self) -> None:
        """Hooks the modules of regions whose rules ask for the running module."""
        for hooked in self._hooked:
            hooked.attach()

    def detach(self) -> None:
        """Removes the hooks."""
        for hooked in self._hooked:
            hooked.detach()

    def check_traced(self) -> None:
        """Raises PlanError if a region that was compiled by now has an entry of `save` that matched nothing in it."""
        for fqn, memory in self._traced:
            if memory.ops_seen:
                memory.check_all_matched(fqn)


def region_draws_random_numbers(module: nn.Module) -> str | None:
    """The FQN of a submodule that drops out while training, or None.

    Finds dropout modules and the attributes by which attention modules keep a dropout probability.
    """
    for fqn, submodule in module.named_modules():
        if isinstance(submodule, nn.modules.dropout._DropoutNd):
            if submodule.p > 0:
                return str(fqn)
            continue
        for name, value in vars(submodule).items():
            if "dropout" in name and isinstance(value, float) and value > 0:
                return f"{fqn}.{name}".lstrip(".")
    return None
