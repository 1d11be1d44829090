"""The predicted frontier of a target, as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from actune.cli.loading import loaded_target
from actune.cli.terminal import say
from actune.config import Space, load_space, space_for
from actune.errors import InfeasibleError
from actune.plan import Plan
from actune.predictions import PredictionRecord
from actune.records import ModelStructure
from actune.report import frontier_points, plan_entry
from actune.search.forecast import Forecast, prediction_record
from actune.search.space import ModelSpace
from actune.units import Budget


def target_frontier(
    target: str, space_name: str | None, budgets: Sequence[str], points: int, load: dict[str, Any]
) -> dict[str, Any]:
    """What `frontier --target` prints.

    Args:
        target: as given.
        space_name: a space's name or path; None for the shipped one that suits the model.
        budgets: for each, the best plan is looked for.
        points: how many budgets the frontier is solved for.
        load: as `loaded_target` takes it.

    Raises:
        UsageError: the target, the device or the space does not exist, or a budget is a share of what does not run.
        TargetError: the target's code raised, hung or died, or the device has no room for it.
    """
    given = None if space_name is None else load_space(space_name)
    with loaded_target("frontier", target=target, **load) as session:
        structure = session.loaded.target.structure
        space = given or _space_for(structure)
        model_space = ModelSpace(space, structure)
        forecast = Forecast(session.engine, structure, model_space)
        say(f"profiling the layers under the treatments of space '{space.name}'")
        forecast.outlook.learn_plans(model_space.presets.values())
        records = tuple(_records(forecast, model_space.presets, points))
        say(f"learned from {forecast.outlook.steps_run} steps")
        for mode, why in forecast.left_out.items():
            say(f"plans with compile = {mode} are not in the frontier: {why}")
        found = [_best(forecast, budget) for budget in budgets]
    reference = _reference(records)
    return {
        "target": target,
        "device": load["device"],
        "device_total_bytes": session.loaded.environment.device_total_bytes,
        "space": space.name,
        "reference": None if reference is None else reference.preset or reference.plan_hash,
        "budgets": found,
        "points": frontier_points(
            records,
            structure.layer_fqns,
            reference_hash=None if reference is None else reference.plan_hash,
        ),
    }


def _space_for(structure: ModelStructure) -> Space:
    return load_space(space_for(structure))


def _records(forecast: Forecast, presets: dict[str, Plan], points: int) -> Iterator[PredictionRecord]:
    """The frontier and the presets; a preset that is on it is one record."""
    named = {plan: name for name, plan in reversed(presets.items())}
    frontier = {point.plan: point.prediction for point in forecast.frontier(points=points)}
    for plan, prediction in frontier.items():
        yield prediction_record(plan, prediction, preset=named.get(plan), on_frontier=True)
    for plan, name in reversed(named.items()):
        known = forecast.known(plan)
        if plan not in frontier and known is not None:
            yield prediction_record(plan, known, preset=name)


def _reference(records: Sequence[PredictionRecord]) -> PredictionRecord | None:
    """What step times are relative to: full AC, else the plan of the frontier with the smallest peak."""
    known = [record for record in records if record.step_time_s is not None]
    full = (record for record in known if record.preset == "full")
    return next(full, min(known, key=lambda record: record.peak_bytes or 0, default=None))


def _best(forecast: Forecast, text: str) -> dict[str, Any]:
    """A budget, and the plan that is predicted to be the fastest within it."""
    budget = Budget.parse(text)
    is_share = budget.absolute_bytes is None
    budget_bytes = budget.resolve_bytes(forecast.predict(Plan()).peak_bytes if is_share else None)
    found: dict[str, Any] = {"budget": text, "budget_bytes": budget_bytes}
    try:
        best = forecast.best(budget_bytes)
    except InfeasibleError as error:
        return found | {"best": None, "smallest_peak_bytes": error.smallest_peak_bytes}
    record = prediction_record(best.plan, best.prediction)
    entry = plan_entry(
        record.plan_hash,
        record.plan_hash,
        predicted_peak_bytes=record.peak_bytes,
        predicted_step_time_s=record.step_time_s,
    )
    return found | {"best": entry | {"plan_toml": record.plan_toml}, "smallest_peak_bytes": None}
