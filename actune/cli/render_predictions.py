"""What is predicted, as tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from actune.cli.render import describe_plan, format_measured_peak, format_ratio, new_table, open_console
from actune.plan import parse_plan
from actune.units import format_bytes, format_duration

ROWS = 20
MEASURED_ROWS = 50


def render_estimated(document: dict[str, Any]) -> None:
    """What `estimate` predicted."""
    table = new_table("plan", "predicted peak", "predicted step time", "relative")
    for entry in document["plans"]:
        table.add_row(
            entry["plan"],
            _predicted_peak(entry),
            format_duration(entry["predicted_step_time_s"]),
            format_ratio(entry["predicted_relative_step_time"]),
        )
    console = open_console()
    console.print(table)
    console.print(
        f"of each peak, {format_bytes(document['static_bytes'])} lie on the device before a first step: parameters, "
        "buffers and inputs"
    )
    if any(entry["predicted_peak_bytes"] is None for entry in document["plans"]):
        console.print("can't run: the device has no room for a treatment of the plan even at a single layer")
    _render_device(console, document, document["plans"])


def render_frontier(document: dict[str, Any]) -> None:
    """A frontier; of many plans that are only predicted, some. --json has all of them."""
    points = document["points"]
    console = open_console()
    if not points:
        console.print("nothing was predicted or measured yet")
        return
    is_study = "study" in document
    measured = ("peak", "relative") if is_study else ()
    table = new_table("plan", "frontier", "predicted peak", "predicted step time", "predicted relative", *measured)
    table.add_column("layers")
    shown = _thinned(points)
    for point in shown:
        table.add_row(
            _name(point),
            point["on_frontier"] or "–",
            _predicted_peak(point),
            format_duration(point["predicted_step_time_s"]),
            format_ratio(point["predicted_relative_step_time"]),
            *([format_measured_peak(point), format_ratio(point["relative_step_time"])] if is_study else []),
            _layers(point),
        )
    console.print(table)
    if len(shown) < len(points):
        console.print(f"{len(shown)} of {len(points)} plans; --json has all of them")
    _render_device(console, document, points)
    if document["reference"] is not None:
        console.print(f"relative: step time over that of {document['reference']}")
    if document.get("budgets_bytes"):
        sizes = ", ".join(map(format_bytes, document["budgets_bytes"]))
        console.print(f"budget{'s' if len(document['budgets_bytes']) > 1 else ''} of the study: {sizes}")
    for found in document.get("budgets", ()):
        if found["best"] is not None:
            best = found["best"]
            console.print(
                f"\nbest within {found['budget']} ({format_bytes(found['budget_bytes'])}): {best['plan_hash']}, peak "
                f"{format_bytes(best['predicted_peak_bytes'])}, step time "
                f"{format_duration(best['predicted_step_time_s'])}"
            )
            console.print(describe_plan(best["plan_toml"]))


def _name(point: dict[str, Any]) -> str:
    """A preset that was measured as a trial of another name has both."""
    return str(point["plan"]) if point["preset"] in (None, point["plan"]) else f"{point['plan']} ({point['preset']})"


def _predicted_peak(entry: dict[str, Any]) -> str:
    """What ran may just not have been predicted; what did not run and has no predicted peak can't run."""
    if entry["predicted_peak_bytes"] is None and entry.get("outcome") is None:
        return "can't run"
    return format_bytes(entry["predicted_peak_bytes"])


def _render_device(console: Console, document: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
    """That plans don't fit the device, which a prediction has no need to notice."""
    total_bytes = document.get("device_total_bytes")
    if total_bytes is not None and any((entry["predicted_peak_bytes"] or 0) > total_bytes for entry in entries):
        console.print(f"{document['device']} has {format_bytes(total_bytes)}: plans with a larger peak don't run on it")


def _thinned(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Presets and what was measured, and as many of the others as fit, evenly along the frontier.

    Of more measured plans than a person reads, those on the measured frontier.
    """
    measured = [n for n, point in enumerate(points) if point["outcome"] is not None]
    if len(measured) > MEASURED_ROWS:
        measured = [n for n in measured if points[n]["on_frontier"] in ("measured", "both")]
    kept = {n for n, point in enumerate(points) if point["preset"] is not None}.union(measured)
    others = [n for n in range(len(points)) if n not in kept and points[n]["on_frontier"] is not None]
    room = max(ROWS - len(kept), 2)
    if len(others) > room:
        others = [others[round(step * (len(others) - 1) / (room - 1))] for step in range(room)]
    return [points[n] for n in sorted(kept.union(others))]


def _layers(point: dict[str, Any]) -> str:
    """How many layers get what."""
    compile_mode = parse_plan(point["plan_toml"]).compile
    parts = [f"{count} {policy}" for policy, count in point["layers"].items()]
    return ", ".join(parts) + ("" if compile_mode == "off" else f"; compile={compile_mode}")
