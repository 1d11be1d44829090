"""What of a plan ran compiled: as part of the documents, and in words where a wrapper made a region eager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actune.plan import WHOLE_LAYER, Plan, compress_fqns
from actune.plan.patterns import LayerPattern
from actune.records import Measurement

_SHOWN_PLACES = 3


def compiled_part(measurement: Measurement | None) -> dict[str, Any]:
    """The part of a plan's entry that speaks of compiled code; null where nothing was compiled, or not known."""
    code = None if measurement is None else measurement.compiled_code
    return {
        "compile_s": None if measurement is None else measurement.compile_s,
        "graph_breaks": None if code is None else len(code.graph_breaks),
        "graph_break_places": None if code is None else list(code.graph_breaks),
        "eager_fqns": None if code is None else list(code.eager_fqns),
        "flex_attention": None if code is None else code.flex_attention,
    }


def compile_warnings(entry: dict[str, Any], plan: Plan) -> list[str]:
    """What a plan that compiles does not compile, why, and what to do.

    Args:
        entry: the plan's, with its `compiled_part`.
        plan: the plan.
    """
    warnings = []
    if entry["eager_fqns"]:
        places = entry["graph_break_places"]
        more = f" and {len(places) - _SHOWN_PLACES} more places" if len(places) > _SHOWN_PLACES else ""
        why = (
            f"tracing stops at {'; '.join(places[:_SHOWN_PLACES])}{more}, and of a checkpoint with a graph break "
            "inside nothing is compiled"
            if places
            else "the compiler gave them up"
        )
        warnings.append(
            f'{short_fqns(entry["eager_fqns"])} ran eagerly although compile = "{plan.compile}": {why}. '
            f"{_advice(entry['eager_fqns'], plan)}"
        )
    if entry["flex_attention"] in ("eager", "both"):
        where = "" if entry["flex_attention"] == "eager" else " in some layers"
        warnings.append(
            f"FlexAttention ran eagerly{where}, and makes the whole matrix of scores. Wrap attention apart from what "
            "breaks the graph (the presets split and split-full), or have the model compile it by itself."
        )
    return warnings


def _advice(eager_fqns: Sequence[str], plan: Plan) -> str:
    wholes = [LayerPattern(text) for rule in plan.rules if WHOLE_LAYER in rule.treatment.wrap for text in rule.layers]
    if any(pattern.covers(fqn) for pattern in wholes for fqn in eager_fqns):
        return (
            "Wrap attention and MoE or feed-forward apart (the presets split and split-full), so that what has no "
            'break is compiled, or set compile = "off".'
        )
    return "What lies outside of them is compiled. Remove the break, or take these out of the checkpoint."


def short_fqns(fqns: Sequence[str]) -> str:
    """FQNs of modules for a message: `layers.0-3.moe` for the same module of several layers."""
    layers: dict[str, list[str]] = {}
    for fqn in fqns:
        parts = fqn.split(".")
        index = next((number for number, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
        below = "".join(f".{part}" for part in parts[index + 1 :])
        layers.setdefault(below, []).append(".".join(parts[: index + 1]))
    short = [f"{layer}{below}" for below, found in layers.items() for layer in compress_fqns(found)]
    return ", ".join(fqn or "the model" for fqn in short)
