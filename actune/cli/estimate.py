"""`actune estimate`: what plans will cost, from a few profiled steps."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from actune.cli.loading import load_options, loaded_target
from actune.cli.options import echo_json, json_option, target_help
from actune.cli.plans import check_plan_names, plan_help, plans_for
from actune.cli.terminal import say
from actune.errors import PlanError

if TYPE_CHECKING:
    from actune.cost.model import Prediction
    from actune.cost.outlook import Outlook
    from actune.plan import Plan


@click.command()
@click.option("--target", required=True, metavar="T", help=target_help)
@click.option(
    "--plan",
    "names",
    multiple=True,
    required=True,
    metavar="P",
    help=f"{plan_help}; step times are relative to the first that is predicted to run.",
)
@load_options
@json_option
def estimate(target: str, names: tuple[str, ...], as_json: bool, **load: Any) -> None:
    """Predict plans: peaks and step times, without running them.

    A few steps teach what each treatment costs at each layer; how many plans are asked about hardly matters.
    """
    from actune.cli.render_predictions import render_estimated
    from actune.cost.outlook import Outlook

    check_plan_names(names)
    with loaded_target("estimate", target=target, **load) as session:
        structure = session.loaded.target.structure
        plans = plans_for(names, structure)
        outlook = Outlook(structure, session.engine.profile)
        say(f"profiling what {len(plans)} plans do to the layers")
        predictions = _predict_all(outlook, plans)
        say(f"learned from {outlook.steps_run} steps")
    document = {
        "target": target,
        "device": load["device"],
        "device_total_bytes": session.loaded.environment.device_total_bytes,
        "static_bytes": session.loaded.target.static_bytes,
        "plans": _entries(plans, predictions),
    }
    if as_json:
        echo_json(document)
    else:
        render_estimated(document)


def _predict_all(outlook: Outlook, plans: list[tuple[str, Plan]]) -> list[Prediction]:
    with suppress(PlanError):  # asked about one by one, the plan at fault can be named
        outlook.learn_plans([plan for _, plan in plans])  # all at once, which takes the fewest steps
    predictions = []
    for name, plan in plans:
        try:
            predictions.append(outlook.predict(plan))
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
    return predictions


def _entries(plans: list[tuple[str, Plan]], predictions: list[Prediction]) -> list[dict[str, Any]]:
    from actune.plan import plan_hash
    from actune.report import plan_entry

    base_s = next((prediction.step_time_s for prediction in predictions if prediction.step_time_s is not None), None)
    entries = []
    for (name, plan), prediction in zip(plans, predictions, strict=True):
        step_time_s = prediction.step_time_s
        entry = plan_entry(
            name, plan_hash(plan), predicted_peak_bytes=prediction.peak_bytes, predicted_step_time_s=step_time_s
        )
        ratio = step_time_s / base_s if step_time_s is not None and base_s else None
        entries.append(entry | {"predicted_relative_step_time": ratio})
    return entries
