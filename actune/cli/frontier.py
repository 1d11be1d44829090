"""`actune frontier`: what peak buys what step time, of a target before anything runs, or of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from actune.cli.loading import load_options
from actune.cli.options import BudgetType, echo_json, json_option, storage_option, target_help
from actune.cli.reading import without_collecting
from actune.cli.terminal import say
from actune.errors import InfeasibleError, UsageError
from actune.files import write_whole
from actune.units import format_bytes

DEFAULT_POINTS = 200


@click.command()
@click.argument("name", required=False)
@click.option("--target", metavar="T", help=target_help)
@click.option("--space", metavar="S", help="A search space: a name (see `actune spaces`) or a YAML file.")
@click.option(
    "--budget",
    "budgets",
    type=BudgetType(),
    multiple=True,
    help="Also the best predicted plan within this peak: 70GB, 64GiB, or 60% of the predicted peak without AC. May be "
    "repeated.",
)
@click.option(
    "--points",
    type=click.IntRange(2, 10_000),
    default=DEFAULT_POINTS,
    show_default=True,
    help="How many budgets between the smallest peak and the largest the frontier is solved for.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A picture: a .png or .svg file."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the plan for --budget.",
)
@load_options
@storage_option
@json_option
def frontier(
    name: str | None,
    target: str | None,
    space: str | None,
    budgets: tuple[str, ...],
    points: int,
    plot: Path | None,
    output: Path | None,
    storage: str,
    as_json: bool,
    **load: Any,
) -> None:
    """Show the frontier: plans that no other beats in both peak and step time.

    With --target it is predicted from a few profiled steps, with the presets marked. With a study's NAME it is what the
    study predicted and what it measured; nothing runs then.
    """
    if (name is None) == (target is None):
        raise click.UsageError("Give either the NAME of a study or a --target.")
    if output is not None and len(budgets) != 1:
        raise click.UsageError("-o writes the plan for one --budget: give one.")
    if plot is not None:
        from actune.cli.plot import check_plot

        check_plot(plot)
    if name is not None:
        _refuse(("space", "budgets", "points", *load), why=f"'{name}' is a study, which has its own")
        document = _of_study(storage, name)
    else:
        assert target is not None
        _refuse(("storage",), why="nothing is stored with --target")
        from actune.cli.forecasting import target_frontier

        document = target_frontier(target, space, budgets, points, load)
    if plot is not None:
        _draw(document, plot)
    if output is not None and document["budgets"][0]["best"] is not None:
        _write(document["budgets"][0]["best"]["plan_toml"], output)
    if as_json:
        echo_json(document)
    else:
        from actune.cli.render_predictions import render_frontier

        render_frontier(document)
    _check_found(document)


def _refuse(names: Sequence[str], *, why: str) -> None:
    """An option that would change nothing is a mistake."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in names and given:
            raise click.UsageError(f"{parameter.opts[0]} does not go with this: {why}.")


def _of_study(storage: str, name: str) -> dict[str, Any]:
    from actune.report import study_frontier_document
    from actune.store import Store

    with without_collecting(), Store.open(storage, create=False) as store:
        return study_frontier_document(store, name)


def _draw(document: dict[str, Any], path: Path) -> None:
    from actune.cli.plot import draw_frontier

    of_target = [found["budget_bytes"] for found in document.get("budgets", ())]
    draw_frontier(
        document["points"],
        path,
        title=f"{document['target']} on {document['device']}",
        reference=document["reference"] or "the reference",
        budgets_bytes=document.get("budgets_bytes", of_target),
        device_bytes=document.get("device_total_bytes"),
    )
    say(f"wrote {path}")


def _write(plan_toml: str, path: Path) -> None:
    try:
        write_whole(path, plan_toml.encode())
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle
        raise UsageError(f"-o {path} can't be written: {getattr(error, 'strerror', None) or error}.") from None
    say(f"wrote {path}")


def _check_found(document: dict[str, Any]) -> None:
    """Raises what ends the command if a budget fits no plan."""
    for found in document.get("budgets", ()):
        if found["best"] is None:
            smallest_bytes = found["smallest_peak_bytes"]
            raise InfeasibleError(
                f"no plan is predicted to fit the budget of {found['budget_bytes']} bytes "
                f"({format_bytes(found['budget_bytes'])}). The smallest predicted peak is {smallest_bytes} bytes "
                f"({format_bytes(smallest_bytes)}). Raise the budget, or make the batch smaller.",
                smallest_peak_bytes=smallest_bytes,
            )
