"""What a plan's step time is made of, as far as it can be corrected: the parts that layers of a class take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from actune.cost.model import CostModel
from actune.cost.profile import RefusedTreatmentError
from actune.plan import CompileMode, Treatment


class TimePart(NamedTuple):
    """What is corrected as one: the layers of a class under a treatment, or all that is outside of layers.

    Attributes:
        compile: the mode of the plan.
        class_name: of the layers' class; empty for what is outside of layers: embeddings, loss, optimizer.
        treatment: canonical; None outside of layers.
    """

    compile: CompileMode
    class_name: str
    treatment: Treatment | None


Correction = Mapping[TimePart, float]
"""What a profiled time is multiplied by, part by part."""


def outside_of_layers(model: CostModel) -> TimePart:
    """The part that every plan of a compile mode has."""
    return TimePart(model.profile.compile, "", None)


def time_parts(model: CostModel, treatments: Mapping[str, Treatment]) -> dict[TimePart, float]:
    """Seconds of a step by part, as profiled; their sum is the model's predicted step time.

    Args:
        model: of the plan's compile mode.
        treatments: of the layers by FQN.

    Raises:
        UnknownTreatmentError: a treatment was not profiled.
        RefusedTreatmentError: a treatment was refused at its layer.
    """
    profile = model.profile
    parts = {outside_of_layers(model): outside_s(model)}
    for role in profile.roles:
        for fqn in role.layer_fqns:
            treatment = treatments[fqn].canonical()
            cost = role.cost(fqn, treatment)
            if cost is None:
                raise RefusedTreatmentError(fqn, treatment)
            part = TimePart(profile.compile, role.class_name, treatment)
            parts[part] = parts.get(part, 0.0) + cost.step_time_s
    return parts


def outside_s(model: CostModel) -> float:
    """Seconds of a step outside of its layers."""
    return sum(slot.step_time_s for slot in model.profile.steady.slots if slot.kind in ("outer", "optimizer"))
