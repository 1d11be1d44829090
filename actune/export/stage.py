"""What a generated module asks for in the training process: its plan, for the model or pipeline stage at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actune.errors import PlanError
from actune.plan import Plan, compress_fqns_text, parse_plan


def plan_for_stage(model: Any, plan_toml: str, layer_fqns: Sequence[str]) -> tuple[Plan, tuple[str, ...]]:
    """The exported plan, cut down to the layers that this model has, and those layers.

    A pipeline stage keeps the FQNs of its layers and has None where its siblings have the embedding, the norm or the
    head (torchtitan 0.2.0 to 0.3.0, distributed/pipeline_parallel.py); so fewer layers are right there and an error
    elsewhere.

    Args:
        model: the `nn.Module` that AC is applied to.
        plan_toml: the plan.
        layer_fqns: every layer of the model that the plan was made for, in order.

    Raises:
        PlanError: the model's layers are not those that the plan was made for, or the text is no plan.
    """
    plan = parse_plan(plan_toml, source="the embedded plan")
    treatments = plan.resolve(layer_fqns)
    here = set(_layer_fqns(model, layer_fqns))
    unknown = sorted(here - set(layer_fqns))
    missing = [fqn for fqn in layer_fqns if fqn not in here]
    is_stage = any(child is None for child in vars(model)["_modules"].values())
    if unknown or (missing and not is_stage):
        raise PlanError(
            f"The plan was made for a model with {compress_fqns_text(layer_fqns)}; this model has "
            f"{compress_fqns_text(sorted(here, key=_by_number))}. Search and export again for this model."
        )
    kept = {fqn: treatment for fqn, treatment in treatments.items() if fqn in here}
    return Plan.from_treatments(kept, compile=plan.compile), tuple(kept)


def leave_compile(model: Any, layer_fqns: Sequence[str]) -> None:
    """Takes the compile of each layer off again after `actune.apply_plan`, for a program that compiles them itself.

    Regions under SAC are made differently for compiled layers, so the plan is applied with its compile; since
    `nn.Module.compile` does nothing before the first call, only its hook has to go.
    """
    for fqn in layer_fqns:
        model.get_submodule(fqn)._compiled_call_impl = None


def _layer_fqns(model: Any, layer_fqns: Sequence[str]) -> list[str]:
    """The FQNs of the children of every stack that a planned layer lies in."""
    stacks = dict.fromkeys(fqn.rpartition(".")[0] for fqn in layer_fqns)
    modules = dict(model.named_modules())
    return [
        f"{stack}.{name}" if stack else name
        for stack in stacks
        if stack in modules
        for name, _ in modules[stack].named_children()
        if stack or name in layer_fqns
    ]


def _by_number(fqn: str) -> tuple[str, int]:
    stack, _, last = fqn.rpartition(".")
    return (stack, int(last)) if last.isdecimal() else (fqn, -1)
