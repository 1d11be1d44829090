"""Applying a plan to a model, and taking it off again."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from actune.ac.compiling import CompiledModule
from actune.ac.regions import Region, RegionFactory, filtered_linears, region_draws_random_numbers
from actune.errors import PlanError
from actune.plan import NO_AC, WHOLE_LAYER, Plan, SavedOp, Treatment
from actune.profiler import discover

_APPLIED = "_actune_application"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a region stands: `parent.name` is `module` without the plan and `region` with it."""

    parent: nn.Module
    name: str
    module: nn.Module
    region: Region


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
            PlanError: the plan does not fit the model.
            TargetError: `layer_fqns` is None and no layers are found.
        """
        if layer_fqns is None:
            layer_fqns = discover(model).layer_fqns
        self.model = model
        self.plan = plan
        treatments = plan.resolve(layer_fqns)
        _check_rules_match_somewhere(model, plan, treatments)
        self._factory = RegionFactory(compiled=plan.compile in ("layer", "model"))
        try:
            self._places = [
                place for fqn, treatment in treatments.items() for place in self._layer_places(fqn, treatment)
            ]
            self._compiled = self._compile(treatments)
        except BaseException:
            self._factory.close()
            raise

    def _layer_places(self, layer_fqn: str, treatment: Treatment) -> list[_Place]:
        if not treatment.is_checkpointed:
            return []
        layer = self.model.get_submodule(layer_fqn)
        places = []
        for below in treatment.wrap:
            fqn = layer_fqn if below == WHOLE_LAYER else f"{layer_fqn}.{below}"
            module = layer if below == WHOLE_LAYER else _submodule(layer, below, layer_fqn)
            if isinstance(module, Region):
                raise PlanError(f"wrap: {fqn} is checkpointed already. Remove the other plan first.")
            parent_fqn, _, name = fqn.rpartition(".")
            places.append(
                _Place(self.model.get_submodule(parent_fqn), name, module, self._factory.make(module, fqn, treatment))
            )
        return places

    def _compile(self, treatments: dict[str, Treatment]) -> list[CompiledModule]:
        if self.plan.compile == "off":
            return []
        for fqn, treatment in treatments.items():
            if treatment.policy == "memory_budget" and treatment.memory_budget != 1:
                random_at = region_draws_random_numbers(self.model.get_submodule(fqn))
                if random_at is not None:
                    raise PlanError(
                        f"memory_budget: {fqn} draws random numbers (dropout at '{random_at}'), for which the compiler "
                        "recomputes other masks and gives wrong gradients (pytorch #190758). Use full or selective."
                    )
        if self.plan.compile == "model":
            shares = {t.memory_budget for t in treatments.values() if t.memory_budget is not None}
            return [CompiledModule(self.model, "", memory_budget=shares.pop() if shares else None)]
        if self.plan.compile == "inside":
            inner = [CompiledModule(place.module, place.name) for place in self._places]
            whole = [fqn for fqn, treatment in treatments.items() if not treatment.is_checkpointed]
            return inner + [CompiledModule(self.model.get_submodule(fqn), fqn) for fqn in whole]
        region_at = {(id(place.parent), place.name): place.region for place in self._places}
        compiled = []
        for fqn, treatment in treatments.items():
            parent_fqn, _, name = fqn.rpartition(".")
            at = (id(self.model.get_submodule(parent_fqn)), name)
            layer = region_at.get(at) or self.model.get_submodule(fqn)
            compiled.append(CompiledModule(layer, fqn, memory_budget=treatment.memory_budget))
        return compiled

    def attach(self) -> None:
        """From here on the model runs under the plan.

        Raises:
            PlanError: a plan is attached already.
        """
        if _APPLIED in self.model.__dict__:
            raise PlanError("a plan is applied to this model already. Call actune.remove_plan(model) first.")
        self.model.__dict__[_APPLIED] = self
        for place in self._places:
            place.parent._modules[place.name] = place.region
        for compiled in self._compiled:
            compiled.attach()

    def detach(self) -> None:
        """The model is as it was, and the plan can be attached again."""
        for compiled in self._compiled:
            compiled.detach()
        for place in self._places:
            place.parent._modules[place.name] = place.module
        self.model.__dict__.pop(_APPLIED, None)

    def close(self) -> None:
        """Detaches for good."""
        if self.model.__dict__.get(_APPLIED) is self:
            self.detach()
        self._factory.close()


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
        PlanError: the plan does not fit the model, or a plan is applied already.
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
    application.close()
    return model
