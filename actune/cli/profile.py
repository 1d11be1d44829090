"""`actune profile`: where the bytes and the time of a layer go, op by op and module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actune.cli.loading import load_options, loaded_target
from actune.cli.options import echo_json, json_option, target_help

if TYPE_CHECKING:
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
@load_options
@json_option
def profile(target: str, with_ops: bool, batches: int, points: int, as_json: bool, **load: Any) -> None:
    """Show where a layer's bytes and time go, op by op, and which save sets that makes worth a trial."""
    from actune.cli.render_profile import render_profile
    from actune.cost.op_survey import trace_classes

    with loaded_target("profile", target=target, **load) as session:
        structure = session.loaded.target.structure
        names = ", ".join(layer_class.name for layer_class in structure.classes)
        click.echo(f"tracing a layer of each class: {names}", err=True)
        traced = trace_classes(structure, session.engine.trace_layers, batches=batches)
    document = {
        "target": target,
        "device": load["device"],
        "sac_op_time_s": traced.sac_op_time_s,
        "layer_classes": _class_entries(traced, structure, points),
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
