"""What is predicted, as tables for people, on stdout."""

from __future__ import annotations

from typing import Any

from actune.cli.render import format_ratio, new_table, open_console
from actune.units import format_bytes, format_duration


def render_estimated(document: dict[str, Any]) -> None:
    """What `estimate` predicted."""
    table = new_table("plan", "predicted peak", "predicted step time", "relative")
    for entry in document["plans"]:
        has_room = entry["predicted_peak_bytes"] is not None
        table.add_row(
            entry["plan"],
            format_bytes(entry["predicted_peak_bytes"]) if has_room else "no room",
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
        console.print("no room: the device can't hold a treatment of the plan even at a single layer")
