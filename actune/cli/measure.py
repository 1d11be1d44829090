"""`actune measure`: several plans measured side by side, without a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from actune.cli.loading import load_options, loaded_target
from actune.cli.options import echo_json, json_option, target_help
from actune.cli.plans import check_plan_names, plan_help, plans_for
from actune.cli.terminal import say
from actune.errors import PlanError

if TYPE_CHECKING:
    from actune.engine import LocalEngine
    from actune.records import Loaded, Measurement


@click.command()
@click.option("--target", required=True, metavar="T", help=target_help)
@click.option(
    "--plan",
    "names",
    multiple=True,
    required=True,
    metavar="P",
    help=f"{plan_help}; step times are relative to the first that runs.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), default=9, show_default=True, help="Timed steps of each plan.")
@load_options
@json_option
def measure(target: str, names: tuple[str, ...], rounds: int, as_json: bool, **load: Any) -> None:
    """Measure plans: exact peaks, and step times in interleaved rounds."""
    from actune.cli.render import render_measured
    from actune.engine import target_error
    from actune.records import Outcome

    check_plan_names(names)
    with loaded_target("measure", target=target, **load) as session:
        entries = _measure_all(session.engine, session.loaded, names, rounds)
        if all(entry["outcome"] in (Outcome.ERROR, Outcome.CRASHED, Outcome.TIMEOUT) for entry, _ in entries):
            measurement = entries[0][1]
            raise target_error(
                f"target '{target}' fails under every plan given: {measurement.message}",
                measurement.detail,
                log_folder=session.log_folder,
            )
    for entry, measurement in entries:
        if measurement.message:
            say(f"{entry['plan']}: {measurement.outcome}: {measurement.message}")
    document = {"target": target, "device": load["device"], "plans": [entry for entry, _ in entries]}
    if as_json:
        echo_json(document)
    else:
        render_measured(document)


def _measure_all(
    engine: LocalEngine, loaded: Loaded, names: tuple[str, ...], rounds: int
) -> list[tuple[dict[str, Any], Measurement]]:
    from actune.plan import dump_plan, plan_hash
    from actune.records import MeasurePlan, MeasureRounds, Outcome
    from actune.report import compile_warnings, compiled_part, plan_entry
    from actune.statistics import clock_of, median_step_time_s, relative_with_interval

    plans = plans_for(names, loaded.target.structure)
    tomls = [dump_plan(plan, with_provenance=False) for _, plan in plans]
    measurements = []
    for (name, _), toml in zip(plans, tomls, strict=True):
        say(f"measuring the peak of {name}")
        try:
            measurements.append(engine.measure(MeasurePlan(toml, None, None, timed_pairs=0)))
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
    ran = [index for index, measurement in enumerate(measurements) if measurement.outcome is Outcome.OK]
    samples = {}
    if ran:
        say(f"timing {len(ran)} plans in {rounds} interleaved rounds")
        timed = engine.measure_rounds(MeasureRounds(tuple(tomls[index] for index in ran), rounds))
        samples = dict(zip(ran, timed.samples, strict=True))
    clock = clock_of(loaded.environment)
    entries = []
    for index, ((name, plan), measurement) in enumerate(zip(plans, measurements, strict=True)):
        of_plan = samples.get(index)
        relative = relative_with_interval(of_plan, samples[ran[0]], clock) if of_plan else (None, None, None)
        entry = plan_entry(
            name,
            plan_hash(plan),
            outcome=measurement.outcome,
            peak_bytes=measurement.peak_bytes,
            step_time_s=median_step_time_s(of_plan) if of_plan else None,
            relative=relative[0],
        )
        entry |= {"relative_step_time_low": relative[1], "relative_step_time_high": relative[2]}
        entry |= compiled_part(measurement)
        entries.append((entry, measurement))
        for warning in compile_warnings(entry, plan):
            say(f"{name}: {warning}")
    return entries
