"""`actune measure`: several plans measured side by side, without a study."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actune.cli.options import (
    DEFAULT_TRIAL_TIMEOUT,
    DurationType,
    device_help,
    echo_json,
    json_option,
    scratch_log_folder,
    target_help,
)
from actune.errors import PlanError, UsageError

if TYPE_CHECKING:
    from actune.engine import LocalEngine
    from actune.plan import Plan
    from actune.records import Loaded, Measurement, ModelStructure


@click.command()
@click.option("--target", required=True, metavar="T", help=target_help)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    required=True,
    metavar="P",
    help="A plan's TOML file, or a preset: none, full, full-every-N, full-first-P%, sac, sac-every-N, split, "
    "split-full. May be repeated; step times are relative to the first that runs.",
)
@click.option("--device", default="cpu", show_default=True, metavar="D", help=device_help)
@click.option("--rounds", type=click.IntRange(1, 1000), default=9, show_default=True, help="Timed steps of each plan.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the model and data.")
@click.option(
    "--trial-timeout",
    type=DurationType(),
    default=DEFAULT_TRIAL_TIMEOUT,
    show_default=True,
    help="Cap on loading and on each measurement.",
)
@json_option
def measure(
    target: str, plans: tuple[str, ...], device: str, rounds: int, seed: int, trial_timeout: float, as_json: bool
) -> None:
    """Measure plans: exact peaks, and step times in interleaved rounds."""
    from actune.cli.render import render_measured
    from actune.engine import LocalEngine, target_error
    from actune.records import LoadTarget, Outcome
    from actune.target_spec import parse_target_spec

    parse_target_spec(target)
    for name in plans:
        _check_named(name)
    load = LoadTarget(target, device, seed)
    with (
        scratch_log_folder("measure") as log_folder,
        LocalEngine(load, workers=1, timeout_s=trial_timeout, log_folder=log_folder) as engine,
    ):
        click.echo(f"loading {target} on {device}", err=True)
        loaded = engine.load()
        entries = _measure_all(engine, loaded, plans, rounds)
        if all(entry["outcome"] in (Outcome.ERROR, Outcome.CRASHED, Outcome.TIMEOUT) for entry, _ in entries):
            measurement = entries[0][1]
            raise target_error(
                f"target '{target}' fails under every plan given: {measurement.message}",
                measurement.detail,
                log_folder=log_folder,
            )
    for entry, measurement in entries:
        if measurement.message:
            click.echo(f"{entry['plan']}: {measurement.outcome}: {measurement.message}", err=True)
    document = {"target": target, "device": device, "plans": [entry for entry, _ in entries]}
    if as_json:
        echo_json(document)
    else:
        render_measured(document)


def _check_named(name: str) -> None:
    from actune.plan import load_plan
    from actune.plan.presets import PRESETS, is_preset

    if is_preset(name):
        return
    if not Path(name).exists():
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"plan '{name}' is neither a file nor a preset.{hint} Presets: {', '.join(PRESETS)}.")
    load_plan(name)


def _plan_of(name: str, structure: ModelStructure) -> Plan:
    from actune.plan import load_plan
    from actune.plan.presets import is_preset, preset_plan

    if is_preset(name):
        return preset_plan(name, structure)
    try:
        return load_plan(name).canonical_for(structure.layer_fqns)
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None


def _measure_all(
    engine: LocalEngine, loaded: Loaded, names: tuple[str, ...], rounds: int
) -> list[tuple[dict[str, Any], Measurement]]:
    from actune.plan import dump_plan, plan_hash
    from actune.records import MeasurePlan, MeasureRounds, Outcome
    from actune.report import plan_entry
    from actune.statistics import clock_of, median_step_time_s, relative_with_interval

    plans = [(name, _plan_of(name, loaded.target.structure)) for name in names]
    tomls = [dump_plan(plan, with_provenance=False) for _, plan in plans]
    measurements = []
    for (name, _), toml in zip(plans, tomls, strict=True):
        click.echo(f"measuring the peak of {name}", err=True)
        try:
            measurements.append(engine.measure(MeasurePlan(toml, None, None, timed_pairs=0)))
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
    ran = [index for index, measurement in enumerate(measurements) if measurement.outcome is Outcome.OK]
    samples = {}
    if ran:
        click.echo(f"timing {len(ran)} plans in {rounds} interleaved rounds", err=True)
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
        entries.append((entry, measurement))
    return entries
