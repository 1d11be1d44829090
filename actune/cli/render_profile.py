"""Profiles of layers as tables for people, on stdout."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from actune.cli.render import COMPILED_COLUMNS, compiled_cells, new_table, open_console
from actune.plan import WHOLE_LAYER
from actune.units import format_bytes, format_duration


def render_profile(document: dict[str, Any], *, with_ops: bool) -> None:
    """What a layer of each class costs: by module, by save set, and by op if asked for."""
    console = open_console()
    for number, entry in enumerate(document["layer_classes"]):
        if number:
            console.print()
        _render_class(console, entry, with_ops=with_ops)
    if (compiled := document.get("compiled")) is not None:
        _render_compiled(console, compiled)
    console.print(
        "\nFLOPs count a multiply-add as two; output: what the ops of the forward make; autograd keeps: of that, what "
        "is held for\nthe backward without AC; SAC keeps: with its default save list and every second matmul. A layer's"
        " input is the layer before's."
    )


def _render_class(console: Console, entry: dict[str, Any], *, with_ops: bool) -> None:
    count = len(entry["layers"])
    console.print(
        f"{entry['layer_class']}: {count} layer{'' if count == 1 else 's'} as {entry['traced_layer']}, "
        f"input {format_bytes(entry['input_bytes'])}, parameters {format_bytes(entry['parameter_bytes'])}"
    )
    if entry["spread"] is not None:
        console.print(_spread(entry))
    console.print()
    console.print(_module_table(entry["modules"]))
    if with_ops:
        console.print()
        console.print(_op_table(entry["ops"]))
    console.print("\nwhat a layer may keep, and what recomputing the rest takes:")
    console.print(_set_table(entry))


def _render_compiled(console: Console, entries: list[dict[str, Any]]) -> None:
    table = new_table("layers compiled, wrapped as in", "outcome", "peak", *COMPILED_COLUMNS)
    for entry in entries:
        table.add_row(entry["plan"], str(entry["outcome"]), format_bytes(entry["peak_bytes"]), *compiled_cells(entry))
    console.print()
    console.print(table)
    for entry in entries:
        for warning in entry["warnings"]:
            console.print(f"\nwarning: {entry['plan']}: {warning}")


def _spread(entry: dict[str, Any]) -> str:
    """A line for a layer whose trace depends on data."""
    spread = entry["spread"]
    what = "sizes" if spread["same_ops"] else "ops"
    lowest, highest = map(format_bytes, spread["kept_bytes"])
    return (
        f"its {what} depend on the batch: over {entry['batches']} batches autograd keeps {lowest} to {highest}; "
        "shown is the batch that keeps most"
    )


def _flops(value: int | None) -> str:
    if not value:
        return "–"
    for unit in ("", "K", "M", "G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000  # type: ignore[assignment]
    return f"{value:.3g}T"


def _bytes(value: int) -> str:
    return format_bytes(value) if value else "–"


def _module_table(modules: list[dict[str, Any]]) -> Table:
    table = new_table("module", "forward", "backward", "FLOPs", "backward", "output", "autograd keeps", "SAC keeps")
    for module in modules:
        table.add_row(
            _indented(module["module"]),
            format_duration(module["forward_time_s"]),
            format_duration(module["backward_time_s"]),
            _flops(module["forward_flops"]),
            _flops(module["backward_flops"]),
            _bytes(module["output_bytes"]),
            _bytes(module["kept_bytes"]),
            _bytes(module["kept_by_sac_bytes"]),
        )
    return table


def _indented(module_fqn: str) -> str:
    if module_fqn == WHOLE_LAYER:
        return "the layer"
    outer, _, name = module_fqn.rpartition(".")
    return "  " * (1 + outer.count(".") + bool(outer)) + name


def _op_table(ops: list[dict[str, Any]]) -> Table:
    table = new_table("op", "", "time", "FLOPs", "output", "autograd keeps", "SAC keeps", "")
    for op in ops:
        number = "" if op["occurrence"] is None else f"#{op['occurrence']}"
        facts = [fact.replace("_", " ") for fact in ("writes_in_place", "random", "chooses") if op[fact]]
        facts += ["depends on the batch"] if op["depends_on_batch"] else []
        table.add_row(
            f"{op['module']}::{op['op']}{number}",
            op["phase"],
            f"{op['time_s'] * 1e6:.0f} µs",
            _flops(op["flops"]),
            _bytes(op["output_bytes"]),
            _bytes(op["kept_bytes"]),
            "yes" if op["kept_by_sac"] else "",
            ", ".join(facts),
        )
    return table


def _set_table(entry: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("recompute", justify="right", no_wrap=True)
    table.add_column("what is kept")
    meanings = {"none": "all that autograd keeps: no AC", "full": "nothing: full AC", "sac": "SAC's defaults"}
    rows = [(preset, meanings[preset["plan"]]) for preset in entry["presets"]]
    rows += [(derived, " ".join(derived["save"])) for derived in entry["save_sets"]]
    for row, meaning in sorted(rows, key=lambda row: row[0]["kept_bytes"]):
        table.add_row(format_bytes(row["kept_bytes"]), format_duration(row["recompute_time_s"]), meaning)
    return table
