"""What holds for all versions of torchtitan: where its layers are, and that it compiles them one by one, after AC."""

from __future__ import annotations

import re
from collections.abc import Sequence

from actune.errors import UsageError
from actune.plan import Plan, compress_fqns_text
from actune.records import ModelStructure

_LAYER = re.compile(r"layers\.[A-Za-z0-9_]+")
_LAYER_OF_A_PART = re.compile(r"([A-Za-z0-9_.]+\.)?layers\.[A-Za-z0-9_]+")


def check_layer_names(layer_fqns: Sequence[str], program: str, *, below_parts: bool) -> None:
    """Refuses a model that torchtitan's AC does not reach.

    torchtitan 0.1.0 to 0.2.2 checkpoint the children of `model.layers` (distributed/activation_checkpoint.py); the one
    family with other stacks, flux, has a function of its own for that, in 0.3.0 too, where it ignores the policy.

    Args:
        layer_fqns: of the plan's model.
        program: how to call it in the message.
        below_parts: whether a part of the model may have a stack `layers` too, as the vision encoders of 0.3.0.

    Raises:
        UsageError: a layer is not a child of `layers`.
    """
    expected = _LAYER_OF_A_PART if below_parts else _LAYER
    others = [fqn for fqn in layer_fqns if expected.fullmatch(fqn) is None]
    if others:
        raise UsageError(
            f"{program} applies AC to the children of `layers`, but the plan's model has "
            f"{compress_fqns_text(others)}. Export with --format actune and call actune.apply_plan yourself."
        )


def has_experts(structure: ModelStructure) -> bool:
    """Whether a layer has a mixture of experts, by the names of its modules."""
    return any("expert" in fqn.lower() for one in structure.classes for fqn in one.module_fqns)


def settle_compile(plan: Plan, *, approximate: bool) -> tuple[bool, tuple[str, ...]]:
    """Whether torchtitan is to compile each layer (its checkpoints inside), and what that loses of the plan's compile.

    Sources: `apply_compile` in models/llama3/infra/parallelize.py (0.1.0 to 0.2.2) and in distributed/compile.py
    (0.3.0).

    Raises:
        UsageError: torchtitan can't compile as the plan says, and no approximation is asked for.
    """
    if plan.compile in ("off", "layer"):
        return plan.compile == "layer", ()
    instead, so_that = "layer", "have the layers compiled one by one"
    if plan.compiles_inside:
        reason = (
            "each region is compiled inside its checkpoint, but torchtitan compiles each layer with its checkpoints "
            "inside"
        )
    elif plan.compile == "off+ops":
        instead, so_that = "off", "leave it to the model how SAC sees what the model compiles itself"
        reason = "what the model compiles itself is one op for SAC, which torchtitan sets for its FlexAttention alone"
    else:
        reason = "the whole model is one compiled graph, but torchtitan compiles layer by layer"
    if not approximate:
        raise UsageError(
            f'compile = "{plan.compile}": {reason}. Export with --approximate to {so_that}, '
            "or export --format actune and call actune.apply_plan yourself."
        )
    return instead == "layer", (f'compile: "{instead}" instead of "{plan.compile}": {reason}.',)
