"""A search space made for a model: parameters for Optuna on one side, per-layer plans on the other.

Layers are grouped by class; each group is cut into contiguous segments, and each segment gets one treatment of the
group's menu. So the number of parameters depends on the classes and segments, not on the layers. Of a target whose
costs can be predicted, better spaces are at hand (`actune.search.latent`); one category per layer is here to compare.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from actune.config import MenuEntry, Space
from actune.errors import UsageError
from actune.plan import NO_AC, WHOLE_LAYER, CompileMode, Plan, Treatment, compress_fqns_text, misfit
from actune.plan.patterns import LayerPattern
from actune.plan.presets import preset_plan
from actune.records import LayerClass, ModelStructure
from actune.search.choice import Choice


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share a menu.

    Attributes:
        name: short, for parameter names.
        layer_fqns: in the model's order.
        menu: the treatments by label.
    """

    name: str
    layer_fqns: tuple[str, ...]
    menu: Mapping[str, Treatment]

    def menu_under(self, mode: CompileMode) -> dict[str, Treatment]:
        """The treatments that a plan with this `compile` may have."""
        return {label: treatment for label, treatment in self.menu.items() if misfit(treatment, mode) is None}


class ModelSpace:
    """The space of a study: what its menu comes to on the target's layers."""

    def __init__(self, space: Space, structure: ModelStructure) -> None:
        """Expands the menu.

        Raises:
            UsageError: an entry of the menu that is not optional fits no layer, or nothing is left for some layers
                under one of the space's compile modes.
        """
        self._structure = structure
        self.compile_modes = space.compile_modes
        self.segments = space.segments
        self._is_per_layer = False
        self.presets = {name: preset_plan(name, structure) for name in space.presets}
        self.groups = _groups(space, structure)
        for group in self.groups:
            for mode in self.compile_modes:
                if not group.menu_under(mode):
                    raise UsageError(
                        f"space '{space.name}': the menu has nothing for {compress_fqns_text(group.layer_fqns)} under "
                        f"compile = {mode}, only {', '.join(group.menu)}. Give it an entry such as `policy: none`, or "
                        "leave that mode out."
                    )

    def memory_budget_plans(self) -> tuple[Plan, ...]:
        """Plans that give the whole model, as one graph, one of the menu's memory budgets: few, and each its own."""
        if "model" not in self.compile_modes:
            return ()
        budgets = {t: None for group in self.groups for t in group.menu.values() if t.policy == "memory_budget"}
        fqns = self._structure.layer_fqns
        return tuple(Plan.from_treatments(dict.fromkeys(fqns, treatment), compile="model") for treatment in budgets)

    def per_layer(self) -> ModelSpace:
        """The same space with a parameter for each layer in place of segments."""
        space = copy(self)
        space._is_per_layer = True
        return space

    def choices(self, values: Mapping[str, Any]) -> list[Choice]:
        """The parameters, given the values chosen so far: the menus depend on `compile`."""
        choices = []
        if len(self.compile_modes) > 1:
            choices.append(Choice("compile", labels=self.compile_modes))
            if "compile" not in values:
                return choices
        mode = self._mode(values)
        for group in self.groups:
            menu = group.menu_under(mode)
            count = self._segments_of(group)
            for cut in range(1, 1 if self._is_per_layer else count):
                choices.append(Choice(f"{group.name}.cut{cut}", high=len(group.layer_fqns)))
            for segment in range(1, count + 1):
                choices.append(Choice(self._segment_name(group, segment, mode), labels=tuple(menu)))
        return choices

    def decode(self, values: Mapping[str, Any], number: int = 0) -> Plan:
        """The plan that the parameters stand for, in its canonical form."""
        mode = self._mode(values)
        treatments: dict[str, Treatment] = {}
        for group in self.groups:
            menu = group.menu_under(mode)
            count, layers = self._segments_of(group), len(group.layer_fqns)
            if self._is_per_layer:
                bounds = [*range(layers + 1)]
            else:
                bounds = [0, *sorted(int(values[f"{group.name}.cut{cut}"]) for cut in range(1, count)), layers]
            for segment in range(1, count + 1):
                treatment = menu[values[self._segment_name(group, segment, mode)]]
                for fqn in group.layer_fqns[bounds[segment - 1] : bounds[segment]]:
                    treatments[fqn] = treatment
        ordered = {fqn: treatments[fqn] for fqn in self._structure.layer_fqns}
        return Plan.from_treatments(_with_one_memory_budget(ordered, mode), compile=mode)

    def encode(self, plan: Plan) -> dict[str, Any] | None:
        """Parameters that decode to the plan, or None if it lies outside of the space."""
        if plan.compile not in self.compile_modes:
            return None
        treatments = plan.resolve(self._structure.layer_fqns)
        values: dict[str, Any] = {"compile": plan.compile} if len(self.compile_modes) > 1 else {}
        for group in self.groups:
            menu = group.menu_under(plan.compile)
            runs = [(t, len(list(run))) for t, run in groupby(treatments[fqn] for fqn in group.layer_fqns)]
            if self._is_per_layer:
                runs = [(treatments[fqn], 1) for fqn in group.layer_fqns]
            count = self._segments_of(group)
            if len(runs) > count or any(treatment.label() not in menu for treatment, _ in runs):
                return None
            runs += [(runs[-1][0], 0)] * (count - len(runs))
            position = 0
            for segment, (treatment, length) in enumerate(runs, start=1):
                position += length
                values[self._segment_name(group, segment, plan.compile)] = treatment.label()
                if segment < count and not self._is_per_layer:
                    values[f"{group.name}.cut{segment}"] = position
        return values

    def random_values(self, rng: random.Random) -> dict[str, Any]:
        """Parameters drawn uniformly."""
        values: dict[str, Any] = {}
        while True:
            missing = [choice for choice in self.choices(values) if choice.name not in values]
            if not missing:
                return values
            for choice in missing:
                values[choice.name] = (
                    rng.choice(choice.labels) if choice.labels is not None else rng.randint(0, choice.high or 0)
                )

    def _mode(self, values: Mapping[str, Any]) -> CompileMode:
        mode: CompileMode = values["compile"] if len(self.compile_modes) > 1 else self.compile_modes[0]
        return mode

    def _segments_of(self, group: LayerGroup) -> int:
        return len(group.layer_fqns) if self._is_per_layer else min(self.segments, len(group.layer_fqns))

    def _segment_name(self, group: LayerGroup, segment: int, mode: CompileMode) -> str:
        """Optuna wants a parameter's categories the same in every trial, so modes with other menus get a suffix."""
        name = f"{group.name}.segment{segment}"
        same = list(group.menu_under(mode)) == list(group.menu_under(self.compile_modes[0]))
        return name if same else f"{name}@{mode}"


def _with_one_memory_budget(treatments: dict[str, Treatment], mode: CompileMode) -> dict[str, Treatment]:
    """Under compile = model a memory budget holds for the whole graph: the first one, for all layers."""
    with_budget = [t for t in treatments.values() if t.policy == "memory_budget"]
    if mode != "model" or not with_budget:
        return treatments
    return dict.fromkeys(treatments, with_budget[0])


def _groups(space: Space, structure: ModelStructure) -> list[LayerGroup]:
    used: set[MenuEntry] = set()
    groups = []
    for layer_class in structure.classes:
        by_menu: dict[tuple[Treatment, ...], list[str]] = {}
        for fqn in layer_class.layer_fqns:
            menu = []
            for entry in space.menu:
                treatment = _for_layer(entry, layer_class, fqn)
                if treatment is not None:
                    used.add(entry)
                    menu.append(treatment)
            by_menu.setdefault(tuple(dict.fromkeys(menu)) or (NO_AC,), []).append(fqn)
        for number, (treatments, fqns) in enumerate(by_menu.items(), start=1):
            name = layer_class.name if len(by_menu) == 1 else f"{layer_class.name}.{number}"
            groups.append(LayerGroup(name, tuple(fqns), {t.label(): t for t in treatments}))
    for entry in space.menu:
        if entry not in used and not entry.optional:
            raise UsageError(
                f"space '{space.name}': '{entry.treatment.label()}' for {', '.join(entry.layers)} fits no layer of "
                f"the target, which has {compress_fqns_text(structure.layer_fqns)}. Correct it, or mark it optional."
            )
    return groups


def _for_layer(entry: MenuEntry, layer_class: LayerClass, fqn: str) -> Treatment | None:
    """The entry's treatment for one layer, or None if the layer does not have what it names."""
    if not any(LayerPattern(pattern).covers(fqn) for pattern in entry.layers):
        return None
    treatment = entry.treatment
    if entry.wraps_parts:
        if not layer_class.parts:
            return None
        treatment = replace(treatment, wrap=layer_class.parts)
    if any(below != WHOLE_LAYER and below not in layer_class.module_fqns for below in treatment.wrap):
        return None
    for part in treatment.filter_fqns:
        matching = [below for below in layer_class.module_fqns if part in f"{fqn}.{below}"]
        if not matching or any(below not in layer_class.linear_fqns for below in matching):
            return None
    return treatment.canonical()
