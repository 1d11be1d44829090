"""Documents as tables for people, on stdout."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from rich.table import Table

from actune.cli.console import TextConsole
from actune.cli.shown_trials import left_out_line, shown_trials
from actune.plan import parse_plan
from actune.report import short_fqns
from actune.units import format_bytes, format_duration


def open_console() -> TextConsole:
    """Stdout; wide where it is no terminal, so that nothing is cut."""
    console = TextConsole()
    return console if console.is_terminal else TextConsole(width=160)


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
    with_compiled = any_compiled(entries)
    compiled = COMPILED_COLUMNS if with_compiled else ()
    table = new_table(
        "plan", "outcome", "peak", *predicted, "step time", "relative", "95% interval", *predicted, *compiled
    )
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
            *(compiled_cells(entry) if with_compiled else []),
        )
    return table


COMPILED_COLUMNS = ("compile", "breaks", "eager all the same")


def any_compiled(entries: Sequence[dict[str, Any]]) -> bool:
    """Whether something is known of what any of the plans compiled."""
    return any(entry.get("graph_breaks") is not None for entry in entries)


def compiled_cells(entry: dict[str, Any]) -> list[str]:
    """For COMPILED_COLUMNS: seconds of compiling, graph breaks, and what ran eagerly although the plan compiles it."""
    if entry.get("graph_breaks") is None:
        return [format_duration(entry.get("compile_s")), "–", "–"]
    flex = entry["flex_attention"]
    eager = [short_fqns(entry["eager_fqns"])] if entry["eager_fqns"] else []
    eager += ["FlexAttention"] if flex in ("eager", "both") else []
    return [format_duration(entry["compile_s"]), str(entry["graph_breaks"]), ", ".join(eager) or "nothing"]


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


def render_study(document: dict[str, Any], *, with_all: bool = False) -> None:
    """A study: its trials, the presets in the final comparison, and the best plan with what it beats.

    Args:
        document: the study's.
        with_all: show all trials, however many there are.
    """
    console = open_console()
    console.print(
        f"study {document['study']}: target {document['target']} on {document['device']}, {_budgets(document)}"
    )
    if document["trials"]:
        console.print()
        named = {*_best_plans(document), *(preset["plan_hash"] for preset in document["presets"])}
        shown = document["trials"] if with_all else shown_trials(document["trials"], named)
        console.print(_trial_table(shown, _best_plans(document), document["presets"]))
        if (line := left_out_line(document["trials"], shown, document["study"])) is not None:
            console.print(f"\n{line}")
        if any(trial["lost_race"] for trial in shown):
            console.print("\nslower: clearly slower than the best, so timing stopped after a few pairs")
    if document["largest_peak_error"] is not None:
        console.print(f"\nlargest error of a predicted peak so far: {document['largest_peak_error']:.3%}")
    best = document["best"]
    if best is None:
        _render_without_best(console, document)
        return
    console.print("\nthe final comparison, side by side:")
    best_plans, presets = _best_plans(document), document["presets"]
    compared = [entry | {"plan": _name(entry, presets)} for entry in best_plans.values()]
    compared += [entry for entry in presets if entry["plan_hash"] not in best_plans]
    console.print(_plan_table(compared, budget_bytes=document["budget_bytes"]))
    console.print(f"\nrelative: step time over that of {document['reference']}, median of interleaved rounds\n")
    for line in end_lines(document):
        console.print(line)
    console.print(f"\nbest: {best['plan']} ({best['plan_hash']}), {_equality(best)}")
    if best["peak_steps"]:
        peak = format_bytes(best["peak_bytes"])
        console.print(f"  peak {peak}, the highest of {best['peak_steps']} steps, each on another batch")
    for line in _beaten(best, presets):
        console.print(f"  {line}")
    console.print("\n" + describe_plan(best["plan_toml"]))
    is_one = len(document["budgets"]) < 2
    if not is_one:
        console.print("\nthe best plan within each budget:")
        console.print(_budget_table(document["budgets"], presets))
    which = "" if is_one else f"--budget {document['budgets'][0]['budget'] or document['budget_bytes']} "
    console.print(
        f"\nexport it: actune export {document['study']} {which}-o plan.toml   (or --format torchtitan-toml, …)"
    )


def _render_without_best(console: TextConsole, document: dict[str, Any]) -> None:
    console.print()
    if document["finished"]:
        console.print("no best plan")
    for line in end_lines(document):
        console.print(line)
    not_run = [entry for entry in document["presets"] if entry["outcome"] is None]
    if not_run:
        console.print("\npresets that did not run:")
        console.print(_plan_table(not_run, budget_bytes=document["budget_bytes"]))


def _best_plans(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The best plan of each budget by its hash, that of the largest first."""
    found = [document["best"], *(budget["best"] for budget in document["budgets"])]
    return {best["plan_hash"]: best for best in found if best is not None}


def _name(entry: Mapping[str, Any], presets: Sequence[dict[str, Any]], name: str | None = None) -> str:
    """What a plan is called, and which presets it is too."""
    name = name or entry["plan"]
    others = [p["plan"] for p in presets if p["plan_hash"] == entry["plan_hash"] and p["plan"] != entry["plan"]]
    return f"{name} ({', '.join(others)})" if others else name


def _trial_table(
    trials: Sequence[dict[str, Any]], best_plans: Container[str], presets: Sequence[dict[str, Any]]
) -> Table:
    """Every prediction beside its measurement, where there are any."""
    with_predictions = _any_predicted(trials)
    predicted = ("predicted",) if with_predictions else ()
    with_compiled = any_compiled(trials)
    compiled = COMPILED_COLUMNS if with_compiled else ()
    table = new_table(
        "trial", "plan", "state", "outcome", "peak", *predicted, "step time", "relative", *predicted, *compiled
    )
    for trial in trials:
        table.add_row(
            f"{trial['number']}{' *' if trial['plan_hash'] in best_plans else ''}",
            _name(trial, presets, trial["plan_hash"] if trial["plan"].startswith("trial") else None),
            trial["state"],
            "ok, slower" if trial["lost_race"] else _outcome(trial, None),
            format_measured_peak(trial),
            *([format_bytes(trial["predicted_peak_bytes"])] if with_predictions else []),
            format_duration(trial["step_time_s"]),
            format_ratio(trial["relative_step_time"]),
            *([format_ratio(trial["predicted_relative_step_time"])] if with_predictions else []),
            *(compiled_cells(trial) if with_compiled else []),
        )
    return table


def _budgets(document: dict[str, Any]) -> str:
    sizes = [budget["budget_bytes"] for budget in document["budgets"]] or [document["budget_bytes"]]
    return f"{'budget' if len(sizes) == 1 else 'budgets'} {', '.join(map(format_bytes, sizes))}"


def _budget_table(budgets: Sequence[dict[str, Any]], presets: Sequence[dict[str, Any]]) -> Table:
    """The best plan of each budget, and how far from the optimum it may be."""
    table = new_table("budget", "best plan", "peak", "step time", "relative", "bound", "gap")
    for budget in budgets:
        size = format_bytes(budget["budget_bytes"])
        best = budget["best"] or {"peak_bytes": None, "step_time_s": None, "relative_step_time": None}
        certificate = budget["certificate"] or {"bound_relative_step_time": None, "gap": None}
        table.add_row(
            size if budget["budget"] is None else f"{budget['budget']} ({size})",
            "no plan fits" if budget["best"] is None else _name(best, presets),
            format_bytes(best["peak_bytes"]),
            format_duration(best["step_time_s"]),
            format_ratio(best["relative_step_time"]),
            format_ratio(certificate["bound_relative_step_time"]),
            "–" if certificate["gap"] is None else f"{certificate['gap']:.1%}",
        )
    return table


_STOPPED = {
    "tolerance": "",
    "exhausted": ": every plan that may be the best was measured, or is predicted to be over the budget",
    "trials": ", as many as --trials allows",
    "timeout": ", as --timeout had passed",
}


def end_lines(document: dict[str, Any]) -> list[str]:
    """Why the search stopped, and how far from the optimum its best plan may be."""
    best, certificate, stopped = document["best"], document["certificate"], document["stopped"]
    if not document["finished"]:
        resume = f"`actune resume {document['study']}` goes on"
        if best is None:
            return [f"no verdict yet: the study has not ended; {resume}"]
        return [f"there are trials since this comparison, and the study has not ended; {resume}"]
    if stopped is None:
        return []  # of a study from before it was stored
    count = len(document["trials"])
    why = f"stopped after {count} {'trial' if count == 1 else 'trials'}{_STOPPED[stopped]}"
    if best is None or certificate is None:
        return [why]
    gain, of_budget = f"{certificate['possible_gain']:.1%}", ""
    if stopped == "tolerance":
        gain = f"{100 * document['tolerance']:.3g}%"
    if len(document["budgets"]) > 1:
        of_budget = " of its budget" if stopped == "tolerance" else " of the largest budget"
    lines = [
        f"{why}{':' if stopped == 'tolerance' else ';'} with 90% confidence no plan of the space is faster than the "
        f"best{of_budget} by more than {gain}"
    ]
    if certificate["gap"] is not None:
        lines.append(
            f"the best takes {best['relative_step_time']:.3f} × {document['reference']}'s step time, and by the "
            f"corrected model no plan that fits takes less than {certificate['bound_relative_step_time']:.3f} ×: a gap "
            f"of {certificate['gap']:.1%}"
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
        if other["plan_hash"] == best["plan_hash"]:
            if other["plan"] != best["plan"]:
                lines.append(f"the same plan as {other['plan']}")
            continue
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
    others = ["any layer not named here: no AC"] if plan.rules else []
    return "\n".join(f"  {part}" for part in [*plan.describe().split("; "), *others])


def render_studies(document: dict[str, Any]) -> None:
    """The list of studies."""
    table = new_table("study", "target", "budget", "trials", "ended", "best relative", "best peak")
    for study in document["studies"]:
        smaller = len(study["budgets_bytes"]) - 1
        table.add_row(
            study["study"],
            study["target"],
            format_bytes(study["budget_bytes"]) + (f" and {smaller} smaller" if smaller > 0 else ""),
            f"{study['trials']}/{study['trials_wanted']}",
            "yes" if study["finished"] else "no",
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
