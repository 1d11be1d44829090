"""`actune profile`: where the bytes and the time of a layer go, op by op and module by module."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from actune.cli.loading import load_options, loaded_target
from actune.cli.options import echo_json, json_option, target_help
from actune.cli.terminal import say

if TYPE_CHECKING:
    from actune.engine import LocalEngine
    from actune.op_trace import LayersTraced
    from actune.records import ModelStructure


@click.command()
@click.option("--target", required=True, metavar="T", help=target_help)
@click.option("--ops", "with_ops", is_flag=True, help="List every op, not only modules. --json always does.")
@click.option(
    "--batches", type=click.IntRange(1, 100), default=3, show_default=True, help="Traced batches: times are medians."
)
@click.option(
    "--points", type=click.IntRange(1, 100), default=6, show_default=True, help="Derived save sets of a class at most."
)
@click.option(
    "--compile",
    "with_compile",
    is_flag=True,
    help="Also compile the layers, wrapped whole and in parts, and warn where a wrapper makes a region eager.",
)
@load_options
@json_option
def profile(
    target: str, with_ops: bool, batches: int, points: int, with_compile: bool, as_json: bool, **load: Any
) -> None:
    """Show where a layer's bytes and time go, op by op, and which save sets that makes worth a trial."""
    from actune.cli.render_profile import render_profile
    from actune.cost.op_survey import trace_classes

    with loaded_target("profile", target=target, **load) as session:
        structure = session.loaded.target.structure
        names = ", ".join(layer_class.name for layer_class in structure.classes)
        say(f"tracing a layer of each class: {names}")
        traced = trace_classes(structure, session.engine.trace_layers, batches=batches)
        compiled = _compiled_entries(session.engine, structure) if with_compile else None
    document = {
        "target": target,
        "device": load["device"],
        "sac_op_time_s": traced.sac_op_time_s,
        "layer_classes": _class_entries(traced, structure, points),
        "compiled": compiled,
    }
    if as_json:
        echo_json(document)
    else:
        render_profile(document, with_ops=with_ops)


def _class_entries(traced: LayersTraced, structure: ModelStructure, points: int) -> list[dict[str, Any]]:
    from actune.cost.derive import derived_sets
    from actune.report import layer_class_entry

    entries = []
    for trace in traced.layers:
        entry = layer_class_entry(trace, structure, sac_op_time_s=traced.sac_op_time_s)
        entry["save_sets"] = [
            {
                "save": list(derived.treatment.save),
                "kept_bytes": derived.kept_bytes,
                "recompute_time_s": derived.recompute_time_s,
            }
            for derived in derived_sets(trace, sac_op_time_s=traced.sac_op_time_s, points=points)
        ]
        entries.append(entry)
    return entries


_WRAPPERS = ("none", "full", "split-full")


def _compiled_entries(engine: LocalEngine, structure: ModelStructure) -> list[dict[str, Any]]:
    """Each way to wrap layers that are compiled one by one: graph breaks, and what runs eagerly all the same."""
    from actune.errors import PlanError
    from actune.plan import dump_plan, plan_hash
    from actune.plan.presets import preset_plan
    from actune.records import Measurement, MeasurePlan, Outcome
    from actune.report import compile_warnings, compiled_part, plan_entry

    entries = []
    for preset in _WRAPPERS:
        say(f"compiling the layers under {preset}")
        plan = replace(preset_plan(preset, structure), compile="layer")
        try:
            measurement = engine.measure(MeasurePlan(dump_plan(plan), None, None, timed_pairs=0))
        except PlanError as error:
            measurement = Measurement(Outcome.ERROR, message=str(error))
        outcome, peak_bytes = measurement.outcome, measurement.peak_bytes
        entry = plan_entry(preset, plan_hash(plan), outcome=outcome, peak_bytes=peak_bytes)
        entry |= compiled_part(measurement)
        entry["warnings"] = [measurement.message] if measurement.message else []
        if measurement.compiled_code is not None:
            entry["warnings"] += compile_warnings(entry, plan)
        entries.append(entry)
    return entries
