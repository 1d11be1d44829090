"""The latent space: a few numbers that the exact solver decodes to a plan for every layer.

One categorical per layer teaches a sampler nothing (the design, section 8). The numbers here say what a plan is for
instead: what share of the budget to spend, by how much the profile's times are off for each policy and layer class, and
which treatments may be used at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from actune.cost.corrected import CorrectableStack
from actune.cost.optimum import best_plan
from actune.cost.stack import Stack
from actune.cost.time_parts import TimePart
from actune.errors import InfeasibleError
from actune.plan import WHOLE_LAYER, Plan, Treatment
from actune.search.choice import Choice
from actune.search.peaks import PeakMargins

LOWEST_SHARE = 0.7
LARGEST_CORRECTION = 0.5
"""Of the logarithm of a step time: a factor of 0.6 to 1.65."""

ANY, LAYER, PARTS, ON, OFF = "any", "layer", "parts", "on", "off"


class LatentSpace:
    """Latent numbers on one side, plans on the other."""

    def __init__(
        self,
        stacks: Sequence[Stack],
        layer_fqns: Sequence[str],
        margins: PeakMargins,
        *,
        budget_bytes: int,
        lowest_share: float = LOWEST_SHARE,
    ) -> None:
        """The space over some compile modes.

        Args:
            stacks: one for each compile mode.
            layer_fqns: of the model.
            margins: of predicted peaks.
            budget_bytes: what is spent in whole at a share of 1.
            lowest_share: the least that is spent of it.
        """
        self._stacks = {stack.model.profile.compile: CorrectableStack.of(stack) for stack in stacks}
        self._layer_fqns = layer_fqns
        self._margins = margins
        self._budget_bytes = budget_bytes
        self._lowest_share = lowest_share
        treatments = {treatment for stack in self._stacks.values() for treatment in stack.treatments}
        self._switches = {name: kinds for name, kinds in _SWITCHES.items() if _offers(treatments, name)}
        parts = {part for stack in self._stacks.values() for part in stack.all_parts}
        self._corrected = sorted({_correction_name(part) for part in parts if part.treatment is not None})

    def choices(self, values: Mapping[str, Any]) -> list[Choice]:
        """The parameters; the same whatever was chosen so far."""
        choices = [Choice("budget_share", span=(self._lowest_share, 1.0))]
        if len(self._stacks) > 1:
            choices.append(Choice("compile", labels=tuple(self._stacks)))
        choices += [Choice(name, labels=kinds) for name, kinds in self._switches.items()]
        choices += [Choice(name, span=(-LARGEST_CORRECTION, LARGEST_CORRECTION)) for name in self._corrected]
        return choices

    def at_share(self, share: float) -> dict[str, Any]:
        """The parameters of the predicted optimum at a share of the budget, under the first compile mode."""
        values: dict[str, Any] = {"budget_share": max(share, self._lowest_share)}
        if len(self._stacks) > 1:
            values["compile"] = next(iter(self._stacks))
        return values | dict.fromkeys(self._switches, ANY) | dict.fromkeys(self._corrected, 0.0)

    def encode(self, plan: Plan) -> dict[str, Any] | None:
        """None: several numbers stand for one plan, and none for others."""
        return None

    def decode(self, values: Mapping[str, Any], number: int = 0) -> Plan:
        """The fastest plan under the corrections within the share; the one of the smallest peak if none fits."""
        stack = self._stacks[values.get("compile", next(iter(self._stacks)))]
        stack = stack.restricted(lambda treatment: self._is_allowed(treatment, values))
        correction = {
            part: 1.0 if part.treatment is None else math.exp(values[_correction_name(part)])
            for part in stack.all_parts
        }
        corrected = stack.corrected(correction)
        aim_bytes = self._margins.aim_bytes(corrected.model.profile.compile, self._budget_bytes)
        try:
            return best_plan(corrected, self._layer_fqns, int(aim_bytes * values["budget_share"])).plan
        except InfeasibleError as error:
            return best_plan(corrected, self._layer_fqns, error.smallest_peak_bytes or aim_bytes).plan

    def _is_allowed(self, treatment: Treatment, values: Mapping[str, Any]) -> bool:
        return all(
            values[name] == ANY or treatment.policy == "none" or _kind(treatment, name) in (values[name], None)
            for name in self._switches
        )


_SWITCHES = {"wrap": (ANY, LAYER, PARTS), "early_stop": (ANY, ON, OFF), "save_sets": (ANY, ON, OFF)}
"""What no profile of single layers is sure to predict, and its alternatives."""


def _kind(treatment: Treatment, switch: str) -> str | None:
    """Which alternative of a switch a treatment belongs to; None if it is none of its business."""
    if switch == "wrap":
        return LAYER if treatment.wrap == (WHOLE_LAYER,) else PARTS
    if switch == "early_stop":
        return ON if treatment.early_stop else OFF
    if treatment.policy != "selective":
        return None
    return ON if treatment.save else OFF


def _offers(treatments: set[Treatment], switch: str) -> bool:
    kinds = {_kind(treatment, switch) for treatment in treatments if treatment.policy != "none"}
    return len(kinds - {None}) > 1


def _correction_name(part: TimePart) -> str:
    assert part.treatment is not None
    return f"correction.{part.class_name}.{part.treatment.policy}"
