"""Applying a plan to a model, and taking it off again."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from actune.ac.compiling import CompiledModule, PiecesAsOps, SharedCode, check_can_wrap
from actune.ac.foreign import own_checkpointing
from actune.ac.fsdp import Shell, is_sharded, sharded_below
from actune.ac.regions import Region, RegionFactory, filtered_linears, region_draws_random_numbers
from actune.ac.routing import find_routing
from actune.errors import PlanError
from actune.plan import NO_AC, WHOLE_LAYER, Plan, SavedOp, Treatment, compress_fqns_text
from actune.profiler import discover
from actune.profiler.signature import layer_signature

_APPLIED = "_actune_application"


_Holders = dict[nn.Module, tuple[tuple[nn.Module, str], ...]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a region stands: each `parent.name` is `module` without the plan and `region` with it.

    More than one where the model shares the module.
    """

    fqn: str
    holders: tuple[tuple[nn.Module, str], ...]
    module: nn.Module
    region: Region

    def put(self, module: nn.Module) -> None:
        for parent, name in self.holders:
            parent._modules[name] = module


class Application:
    """A plan made ready for a model. `attach` and `detach` switch it on and off in microseconds.

    Several plans can be ready for one model; at most one is attached at a time.
    """

    def __init__(self, model: nn.Module, plan: Plan, layer_fqns: Sequence[str] | None = None) -> None:
        """Checks the plan against the model and makes its regions.

        Args:
            model: left as it is until `attach`.
            plan: what every layer gets.
            layer_fqns: the model's layers; found by `discover` if None.

        Raises:
            PlanError: the plan does not fit the model, or the model checkpoints something by itself beside it.
            TargetError: `layer_fqns` is None and no layers are found.
        """
        recomputes = any(rule.treatment != NO_AC for rule in plan.rules)
        if recomputes and (found := own_checkpointing(model)) is not None:
            raise PlanError(found)
        if layer_fqns is None:
            layer_fqns = discover(model).layer_fqns
        self.model = model
        self.plan = plan
        treatments = plan.resolve(layer_fqns)
        _check_rules_match_somewhere(model, plan, treatments)
        if plan.compile.endswith("+ops"):
            check_can_wrap(plan.compile)
        self._factory = RegionFactory(plan.compile)
        holders = _holders(model)
        self._places = [
            place for fqn, treatment in treatments.items() for place in self._layer_places(fqn, treatment, holders)
        ]
        self._shells = self._shells_of_sharded(treatments, holders)
        self._compiled = self._compile(treatments)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a compiled module is not compiled (`nn.Module.__getstate__`), so the copy would not run as planned.
        if self.plan.compile != "off":
            raise PlanError(
                f'compile: a model under a plan with compile = "{self.plan.compile}" can\'t be copied or pickled. Call '
                "actune.remove_plan(model) first, and apply the plan to the copy."
            )
        return self.__dict__

    def _layer_places(self, layer_fqn: str, treatment: Treatment, holders: _Holders) -> list[_Place]:
        if not treatment.is_checkpointed:
            return []
        layer = self.model.get_submodule(layer_fqn)
        places = []
        for below in treatment.wrap:
            fqn = layer_fqn if below == WHOLE_LAYER else f"{layer_fqn}.{below}"
            module = layer if below == WHOLE_LAYER else _submodule(layer, below, layer_fqn)
            if isinstance(module, Region):
                raise PlanError(f"wrap: {fqn} is checkpointed already. Remove the other plan first.")
            region = self._factory.make(module, fqn, treatment, find_routing(layer, below))
            places.append(_Place(fqn, holders[module], module, region))
        return places

    def _compile(self, treatments: dict[str, Treatment]) -> Sequence[CompiledModule | PiecesAsOps]:
        if self.plan.compile == "off":
            return []
        if self.plan.compile == "off+ops":
            if not any(treatment.policy == "selective" for treatment in treatments.values()):
                return []  # what no SAC looks at is compiled as ever
            layers = [self.model.get_submodule(fqn) for fqn in treatments]
            recomputed = [place.module for place in self._places]
            return [PiecesAsOps(module) for module in dict.fromkeys([self.model, *layers, *recomputed])]
        code = SharedCode()
        check = self._factory.check_traced
        if self.plan.compile == "model":
            share = _share_of_whole_model(treatments)
            _refuse_random_numbers(self.model, "the model", share)
            for fqn, treatment in treatments.items():
                _refuse_lost_routing(self.model.get_submodule(fqn), fqn, treatment)
            return [CompiledModule(self.model, "", code=code, kind="model", check=check, memory_budget=share)]
        compiled = []
        if self.plan.compiles_inside:
            as_op = self.plan.compile == "inside+ops"
            for place in self._places:
                kind = layer_signature(place.module)
                compiled.append(CompiledModule(place.module, place.fqn, code=code, kind=kind, check=check, as_op=as_op))
        regions = {place.module: place.region for place in self._places}
        for fqn, treatment in treatments.items():
            if self.plan.compiles_inside and treatment.is_checkpointed:
                continue
            layer = self.model.get_submodule(fqn)
            _refuse_random_numbers(layer, fqn, treatment.memory_budget)
            _refuse_lost_routing(layer, fqn, treatment)
            compiled.append(
                CompiledModule(
                    regions.get(layer, layer),
                    fqn,
                    code=code,
                    kind=(layer_signature(layer), treatment),
                    check=check,
                    memory_budget=treatment.memory_budget,
                )
            )
        return compiled

    def _shells_of_sharded(self, treatments: dict[str, Treatment], holders: _Holders) -> list[Shell]:
        modules = [place.module for place in self._places]
        if self.plan.compile not in ("off", "off+ops"):
            eager = [
                fqn for fqn, given in treatments.items() if self.plan.compile == "layer" or not given.is_checkpointed
            ]
            modules += [self.model.get_submodule(fqn) for fqn in eager]
        for module in {"off": [], "off+ops": [], "model": [self.model]}.get(self.plan.compile, modules):
            _refuse_sharded_inside(self.model, module)
        return [Shell(module, holders[module]) for module in dict.fromkeys(modules) if is_sharded(module)]

    def attach(self) -> None:
        """From here on the model runs under the plan.

        Raises:
            PlanError: a plan is attached already.
        """
        if _APPLIED in self.model.__dict__:
            raise PlanError("a plan is applied to this model already. Call actune.remove_plan(model) first.")
        self.model.__dict__[_APPLIED] = self
        self._factory.attach()
        for place in self._places:
            place.put(place.region)
        for compiled in self._compiled:
            compiled.attach()
        for shell in self._shells:
            shell.attach()

    def detach(self) -> None:
        """The model is as it was, and the plan can be attached again."""
        for shell in self._shells:
            shell.detach()
        for compiled in self._compiled:
            compiled.detach()
        for place in self._places:
            place.put(place.module)
        self._factory.detach()
        self.model.__dict__.pop(_APPLIED, None)


def _holders(model: nn.Module) -> _Holders:
    """Each module's parents, with the name it has there: several where the model shares it."""
    holders: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, module in parent._modules.items():
            if module is not None:
                holders.setdefault(module, []).append((parent, name))
    return {module: tuple(of_module) for module, of_module in holders.items()}


def _refuse_sharded_inside(model: nn.Module, module: nn.Module) -> None:
    """Raises PlanError if what is to be compiled as one graph has FSDP2's hooks inside, each of which would cut it."""
    inside = sharded_below(module)
    if inside is not None or (module is model and is_sharded(model)):
        fqn = next(fqn for fqn, child in model.named_modules() if child is module)
        raise PlanError(
            f"compile: {fqn or 'the model'} has modules inside that fully_shard was applied to"
            f"{f' ({inside})' if inside else ''}, whose hooks would cut the graph. With FSDP2, compile layer by layer "
            '(compile = "layer") and shard what is compiled as a whole, or set compile = "off".'
        )


def _share_of_whole_model(treatments: dict[str, Treatment]) -> float | None:
    """The one memory budget of a model that is compiled as one graph.

    Raises:
        PlanError: only some of the layers have it.
    """
    shares = {t.memory_budget for t in treatments.values() if t.memory_budget is not None}
    if not shares:
        return None
    without = [fqn for fqn, treatment in treatments.items() if treatment.policy != "memory_budget"]
    if without:
        raise PlanError(
            f'memory_budget: {compress_fqns_text(without)} have another policy, but with compile = "model" one graph '
            'has one budget, for all that is in it. Give the policy to all layers, or set compile = "layer".'
        )
    return shares.pop()


def _refuse_random_numbers(module: nn.Module, name: str, memory_budget: float | None) -> None:
    random_at = None if memory_budget in (None, 1) else region_draws_random_numbers(module)
    if random_at is not None:
        raise PlanError(
            f"memory_budget: {name} draws random numbers (dropout at '{random_at}'), for which the compiler "
            "recomputes other masks and gives wrong gradients (pytorch #190758). Use full or selective."
        )


def _refuse_lost_routing(layer: nn.Module, name: str, treatment: Treatment) -> None:
    """Raises PlanError where the compiler may choose experts anew and the plan does not say so."""
    if treatment.memory_budget in (None, 1) or not treatment.save_routing or not find_routing(layer, WHOLE_LAYER):
        return
    raise PlanError(
        f"memory_budget: {name} chooses experts, and what the compiler recomputes may round otherwise and choose other "
        "ones. Set save_routing = false to allow that (the comparison of gradients shows whether it happens), or use "
        "full or selective, which keep the choice."
    )


def _submodule(layer: nn.Module, below: str, layer_fqn: str) -> nn.Module:
    modules = {fqn: module for fqn, module in layer.named_modules() if fqn}
    if below not in modules:
        near = difflib.get_close_matches(below, modules, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        children = ", ".join(name for name, _ in layer.named_children())
        raise PlanError(f"wrap: {layer_fqn} has no module '{below}'.{hint} It has: {children or 'no submodules'}.")
    module: nn.Module = modules[below]
    return module


def _check_rules_match_somewhere(model: nn.Module, plan: Plan, treatments: dict[str, Treatment]) -> None:
    """Each filter and each `save` entry must match in at least one layer that its treatment goes to."""
    for treatment in dict.fromkeys(treatments.values()):
        if treatment == NO_AC or treatment.policy != "selective":
            continue
        layer_fqns = [fqn for fqn, given in treatments.items() if given == treatment]
        regions = [
            (fqn if below == WHOLE_LAYER else f"{fqn}.{below}", _region_module(model, fqn, below))
            for fqn in layer_fqns
            for below in treatment.wrap
        ]
        for part in treatment.filter_fqns:
            alone = Treatment("selective", wrap=treatment.wrap, filter_fqns=(part,))
            if not any(filtered_linears(alone, module, fqn) for fqn, module in regions):
                linears = sorted({f for _, m in regions for f, s in m.named_modules() if isinstance(s, nn.Linear)})
                raise PlanError(
                    f"filter_fqns: '{part}' matches no Linear in {', '.join(layer_fqns[:3])}"
                    f"{' …' if len(layer_fqns) > 3 else ''}. The Linears are: {', '.join(linears) or 'none'}."
                )
        for entry in map(SavedOp.parse, treatment.save):
            known = {f for _, m in regions for f, _ in m.named_modules() if f}
            if entry.module_fqn != WHOLE_LAYER and entry.module_fqn not in known:
                near = difflib.get_close_matches(entry.module_fqn, known, n=3)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise PlanError(
                    f"save: '{entry}' names the module '{entry.module_fqn}', which no region of the rule has.{hint} "
                    f"Modules are named below the region: {', '.join(sorted(known)) or 'there are none'}."
                )


def _region_module(model: nn.Module, layer_fqn: str, below: str) -> nn.Module:
    layer = model.get_submodule(layer_fqn)
    return layer if below == WHOLE_LAYER else _submodule(layer, below, layer_fqn)


def apply_plan(model: nn.Module, plan: Plan, *, layer_fqns: Sequence[str] | None = None) -> nn.Module:
    """Applies a plan to a model, in place: checkpoints first, then compile. FSDP comes after.

    FQNs and state_dict keys stay as they are, and nothing process-wide is changed.

    Args:
        model: any module with a repeated stack of layers.
        plan: from `load_plan`, `parse_plan` or built in Python.
        layer_fqns: the layers' FQNs, where they should not be discovered.

    Returns:
        The same model.

    Raises:
        PlanError: the plan does not fit the model, the model checkpoints something by itself beside it, or a plan is
            applied already.
        TargetError: no layers are found and `layer_fqns` is None.
    """
    if _APPLIED in model.__dict__:
        raise PlanError("a plan is applied to this model already. Call actune.remove_plan(model) first.")
    Application(model, plan, layer_fqns).attach()
    return model


def remove_plan(model: nn.Module) -> nn.Module:
    """Takes the applied plan off again; the model is as it was before.

    Raises:
        PlanError: no plan is applied.
    """
    application = model.__dict__.get(_APPLIED)
    if application is None:
        raise PlanError("no plan is applied to this model, so there is none to remove.")
    assert isinstance(application, Application)
    application.detach()
    return model
