"""Documents as tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from actune.plan import parse_plan
from actune.units import format_bytes, format_duration


def open_console() -> Console:
    """Stdout; wide where it is no terminal, so that nothing is cut."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=160)
    return console


def format_measured_peak(entry: dict[str, Any]) -> str:
    """A plan over the budget was stopped, so its peak is at least what was seen."""
    text = format_bytes(entry["peak_bytes"])
    return f"≥ {text}" if entry["outcome"] == "over_budget" and entry["peak_bytes"] is not None else text


def format_ratio(value: float | None) -> str:
    """Three places; a dash for what is not known."""
    return "–" if value is None else f"{value:.3f}"


def new_table(*columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _plan_table(entries: Sequence[dict[str, Any]], *, budget_bytes: int | None = None) -> Table:
    """Predictions have columns where there are any."""
    with_predictions = _any_predicted(entries)
    predicted = ("predicted",) if with_predictions else ()
    table = new_table("plan", "outcome", "peak", *predicted, "step time", "relative", "95% interval", *predicted)
    for entry in entries:
        low, high = entry.get("relative_step_time_low"), entry.get("relative_step_time_high")
        table.add_row(
            entry["plan"],
            _outcome(entry, budget_bytes),
            format_measured_peak(entry),
            *([format_bytes(entry["predicted_peak_bytes"])] if with_predictions else []),
            format_duration(entry["step_time_s"]),
            format_ratio(entry["relative_step_time"]),
            "–" if low is None else f"{low:.3f}–{high:.3f}",
            *([format_ratio(entry["predicted_relative_step_time"])] if with_predictions else []),
        )
    return table


def _any_predicted(entries: Sequence[dict[str, Any]]) -> bool:
    return any(entry["predicted_peak_bytes"] is not None for entry in entries)


def _outcome(entry: dict[str, Any], budget_bytes: int | None) -> str:
    """How a trial ended, or why there was none."""
    if entry["outcome"] is not None:
        return str(entry["outcome"]).replace("_", " ")
    if entry["predicted_peak_bytes"] is None:
        return "not run: a treatment of it can't be had"
    if budget_bytes is not None and entry["predicted_peak_bytes"] > budget_bytes:
        return "not run: predicted over the budget"
    return "not run"


def render_measured(document: dict[str, Any]) -> None:
    """What `measure` found."""
    console = open_console()
    console.print(_plan_table(document["plans"]))
    console.print("relative: step time over that of the first plan that ran, median of interleaved rounds")


def render_study(document: dict[str, Any]) -> None:
    """A study: its trials, the presets in the final comparison, and the best plan with what it beats."""
    console = open_console()
    console.print(
        f"study {document['study']}: target {document['target']} on {document['device']}, "
        f"budget {_budgets_text(document)}"
    )
    if document["trials"]:
        console.print()
        console.print(_trial_table(document["trials"], document["best"]))
    if document["largest_peak_error"] is not None:
        console.print(f"\nlargest error of a predicted peak so far: {document['largest_peak_error']:.3%}")
    best = document["best"]
    if best is None:
        console.print("\nno best plan" if document["finished"] else "\nno verdict yet: the study has not ended")
        not_run = [entry for entry in document["presets"] if entry["outcome"] is None]
        if not_run:
            console.print("\npresets that did not run:")
            console.print(_plan_table(not_run, budget_bytes=document["budget_bytes"]))
        return
    console.print("\nthe final comparison, side by side:")
    others = [entry for entry in document["presets"] if entry["plan_hash"] != best["plan_hash"]]
    console.print(_plan_table([best, *others], budget_bytes=document["budget_bytes"]))
    console.print(f"\nrelative: step time over that of {document['reference']}, median of interleaved rounds")
    for line in certificate_lines(document):
        console.print(line)
    console.print(f"\nbest: {best['plan']} ({best['plan_hash']}), {_equality(best)}")
    if best["peak_steps"]:
        peak = format_bytes(best["peak_bytes"])
        console.print(f"  peak {peak}, the highest of {best['peak_steps']} steps, each on another batch")
    for line in _beaten(best, others):
        console.print(f"  {line}")
    console.print("\n" + describe_plan(best["plan_toml"]))
    if len(document["budgets"]) > 1:
        console.print("\nthe best within each budget:")
        console.print(_budget_table(document["budgets"]))
    console.print(f"\nexport it: actune export {document['study']} -o plan.toml   (or --format torchtitan-toml, …)")


def _trial_table(trials: Sequence[dict[str, Any]], best: dict[str, Any] | None) -> Table:
    """Every prediction beside its measurement, where there are any."""
    with_predictions = _any_predicted(trials)
    predicted = ("predicted",) if with_predictions else ()
    table = new_table("trial", "plan", "state", "outcome", "peak", *predicted, "step time", "relative", *predicted)
    for trial in trials:
        is_best = best is not None and best["plan_hash"] == trial["plan_hash"]
        table.add_row(
            f"{trial['number']}{' *' if is_best else ''}",
            trial["plan"] if not trial["plan"].startswith("trial") else trial["plan_hash"],
            trial["state"],
            "ok, slower" if trial["lost_race"] else _outcome(trial, None),
            format_measured_peak(trial),
            *([format_bytes(trial["predicted_peak_bytes"])] if with_predictions else []),
            format_duration(trial["step_time_s"]),
            format_ratio(trial["relative_step_time"]),
            *([format_ratio(trial["predicted_relative_step_time"])] if with_predictions else []),
        )
    return table


def _budgets_text(document: dict[str, Any]) -> str:
    sizes = [budget["budget_bytes"] for budget in document["budgets"]] or [document["budget_bytes"]]
    return ", ".join(map(format_bytes, sizes))


def _budget_table(budgets: Sequence[dict[str, Any]]) -> Table:
    table = new_table("budget", "best", "peak", "step time", "relative", "bound", "gap")
    for budget in budgets:
        best, certificate = budget["best"], budget["certificate"] or {}
        gap = certificate.get("gap")
        table.add_row(
            format_bytes(budget["budget_bytes"]),
            "no plan fits" if best is None else best["plan"],
            *(
                ("–", "–", "–")
                if best is None
                else (
                    format_bytes(best["peak_bytes"]),
                    format_duration(best["step_time_s"]),
                    format_ratio(best["relative_step_time"]),
                )
            ),
            format_ratio(certificate.get("bound_relative_step_time")),
            "–" if gap is None else f"{gap:.1%}",
        )
    return table


_STOPPED = {
    "tolerance": "stopped after {trials} trials: with 90% confidence no plan of the space is faster than the best by "
    "more than {tolerance:.1%}",
    "exhausted": "stopped after {trials} trials: every plan that may be the best was measured, or is predicted over "
    "the budget",
    "trials": "stopped after {trials} trials, as many as --trials allows",
    "timeout": "stopped after {trials} trials by --timeout",
}


def certificate_lines(document: dict[str, Any]) -> list[str]:
    """Why the search ended, and how far from the optimum its best plan may be."""
    lines = []
    if document["stopped"] is not None:
        text = _STOPPED[document["stopped"]]
        lines.append("\n" + text.format(trials=len(document["trials"]), tolerance=document["tolerance"]))
    certificate = document["certificate"]
    if certificate is not None and certificate["gap"] is not None:
        lines.append(
            f"certificate: best {document['best']['relative_step_time']:.3f} × {document['reference']}, lower bound "
            f"{certificate['bound_relative_step_time']:.3f}, gap {certificate['gap']:.1%}; with 90% confidence no plan "
            f"that fits is faster than the best by more than {certificate['possible_gain']:.1%}"
        )
    return lines


def _equality(best: dict[str, Any]) -> str:
    if best["gradients_equal"] is None:
        return "loss and gradients not compared: simulated"
    how = "bitwise" if best["gradients_bitwise"] else "within rounding"
    return f"loss and gradients equal to the run without AC, {how}"


def _beaten(best: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """For each preset, by how much the best plan is faster or slower, and whether that preset fits at all."""
    lines = []
    for other in others:
        if other["relative_step_time"] is None or other["outcome"] not in ("ok", "over_budget"):
            continue
        gain = 1 - best["relative_step_time"] / other["relative_step_time"]
        how = "faster" if gain >= 0 else "slower"
        fits = "" if other["outcome"] == "ok" else ", which is over the budget"
        noise = " (the intervals overlap)" if _overlap(best, other) else ""
        lines.append(f"{abs(gain):.1%} {how} than {other['plan']}{fits}{noise}")
    return lines


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if other["relative_step_time_low"] is None:
        return False
    low = max(one["relative_step_time_low"], other["relative_step_time_low"])
    return bool(low <= min(one["relative_step_time_high"], other["relative_step_time_high"]))


def describe_plan(plan_toml: str) -> str:
    """Layers and what they get; a layer that no rule names is left alone."""
    plan = parse_plan(plan_toml)
    return "\n".join(f"  {part}" for part in [*plan.describe().split("; "), "any layer not named here: no AC"])


def render_studies(document: dict[str, Any]) -> None:
    """The list of studies."""
    table = new_table("study", "target", "budget", "trials", "best relative", "best peak")
    for study in document["studies"]:
        table.add_row(
            study["study"],
            study["target"],
            format_bytes(study["budget_bytes"]),
            f"{study['trials']}/{study['trials_wanted']}",
            format_ratio(study["best_relative_step_time"]),
            format_bytes(study["best_peak_bytes"]),
        )
    open_console().print(table)


def render_pairs(title: str, pairs: Mapping[str, str]) -> None:
    """Names with what they mean."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title, no_wrap=True)
    table.add_column("")
    for name, meaning in pairs.items():
        table.add_row(name, meaning)
    open_console().print(table)


def render_checks(checks: Sequence[dict[str, Any]]) -> None:
    """The doctor's findings."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in checks:
        table.add_row("ok" if check["ok"] else "FAILED", check["name"], check["detail"])
    open_console().print(table)
