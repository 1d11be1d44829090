"""`actune search` and `actune resume`: the main job."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actune.cli.loading import check_processes
from actune.cli.options import (
    DEFAULT_TRIAL_TIMEOUT,
    MAX_NPROC,
    MAX_WORLD_SIZE,
    BudgetsType,
    DevicesType,
    DurationType,
    ToleranceType,
    device_help,
    echo_json,
    json_option,
    log_folder_of,
    nproc_help,
    storage_option,
    target_help,
    trust_target_option,
    wait_option,
    world_size_help,
)
from actune.errors import ActuneError, InfeasibleError, UsageError
from actune.units import Budget, format_bytes, parse_duration_s

if TYPE_CHECKING:
    from actune.store import Store
    from actune.study_records import StudySettings, Verdict

_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "space": "auto",
    "trials": 30,
    "timeout": None,
    "trial_timeout": parse_duration_s(DEFAULT_TRIAL_TIMEOUT),
    "workers": 1,
    "sampler": "thompson",
    "tolerance": 0.01,
    "frontier": False,
    "seed": 0,
    "world_size": 1,
    "nproc_per_node": 1,
    "devices": (),
    "engine": "local",
    "address": None,
}
_FIXED = ("target", "budget", "frontier", "device", "space", "sampler", "seed", "world_size", "nproc_per_node")
"""What a study can't change while it goes on: its trials would not be comparable."""

WHOLE = "100%"
"""The budget of a frontier that has none: the peak without AC."""

TIMED_PAIRS = 5
VERDICT_ROUNDS = 9


@click.command()
@click.argument("study_file", required=False, type=click.Path(path_type=Path), metavar="[STUDY.yaml]")
@click.option("--target", metavar="T", help=target_help)
@click.option(
    "--budget",
    type=BudgetsType(),
    metavar="B[,B…]",
    help="Cap on the device's peak: 70GB, 64GiB, or 60% of the peak without AC; several with commas between them.",
)
@click.option(
    "--frontier",
    is_flag=True,
    default=None,
    help="Search eight budgets, from the smallest predicted peak to --budget (without it, the peak without AC).",
)
@click.option("--space", metavar="S", help="A search space: a name (see `actune spaces`) or a YAML file.")
@click.option("--study", metavar="NAME", help="The study's name; one that exists goes on from where it is.")
@storage_option
@click.option("--trials", type=click.IntRange(1, 100_000), help="How many plans are measured at most. Default: 30.")
@click.option(
    "--tolerance",
    type=ToleranceType(),
    metavar="T",
    help="The search ends once no plan is believed to beat the best by more than this share; 0 for never. Default: 1%.",
)
@click.option(
    "--timeout", type=DurationType(), help="No trial but the first starts after this long, such as 2h. Default: none."
)
@click.option(
    "--trial-timeout", type=DurationType(), help=f"Cap on loading and on each trial. Default: {DEFAULT_TRIAL_TIMEOUT}."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Trials that run at once, on cuda with a card each; on a CPU one is timed at a time. Default: 1.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    help="Where workers run: on this machine, or on the nodes of a Ray cluster. Default: local.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="The Ray cluster. Default: what RAY_ADDRESS says, else the one that this machine is a node of.",
)
@click.option("--device", metavar="D", help=f"{device_help} Default: cpu.")
@click.option(
    "--devices",
    type=DevicesType(),
    metavar="D[,D…]",
    help="The cards to run trials on, such as cuda:0,cuda:1, with a worker each unless --workers says otherwise.",
)
@click.option("--world-size", type=click.IntRange(1, MAX_WORLD_SIZE), help=f"{world_size_help} Default: 1.")
@click.option("--nproc-per-node", type=click.IntRange(1, MAX_NPROC), help=f"{nproc_help} Default: 1.")
@click.option("--sampler", metavar="NAME", help="thompson, tpe, random, gp or per-layer. Default: thompson.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the model, its data and the sampler. Default: 0.")
@wait_option
@trust_target_option
@json_option
def search(
    study_file: Path | None, storage: str, wait: bool, trust_target: bool, as_json: bool, **options: Any
) -> None:
    """Find the best plan for a target under a budget.

    Options given here go before those in STUDY.yaml. With a study that exists, the search goes on from where it is.
    """
    from actune.config import load_study_file

    asked = {name: value for name, value in options.items() if value is not None}
    if study_file is not None:
        from_file = load_study_file(study_file).model_dump(exclude_none=True)
        asked = _parsed(from_file, source=str(study_file)) | asked
    for name in _required(asked):
        if name not in asked and not (study_file is None and "study" in asked):
            raise click.UsageError(f"Missing option '--{name}': give it here or in a STUDY.yaml.")
    if "devices" in asked:
        workers = max(1, len(asked["devices"]) // asked.get("nproc_per_node", 1))
        asked = {"device": "cuda", "workers": workers} | asked
    study = asked.pop("study", None) or _name_for(asked)
    _run(study, asked, storage=storage, wait=wait, trust_target=trust_target, as_json=as_json)


@click.command()
@click.argument("name")
@storage_option
@wait_option
@trust_target_option
@json_option
def resume(name: str, storage: str, wait: bool, trust_target: bool, as_json: bool) -> None:
    """Go on with a study, with what it was started with."""
    _run(name, None, storage=storage, wait=wait, trust_target=trust_target, as_json=as_json)


def _parsed(values: dict[str, Any], *, source: str) -> dict[str, Any]:
    """A study file's values as the options would have parsed them."""
    command_options = {option.name: option for option in search.params}
    for name, value in values.items():
        try:
            values[name] = command_options[name].type.convert(value, None, None)
        except click.BadParameter as error:
            raise UsageError(f"{source}: {name}: {error.message}") from None
    return values


def _required(asked: dict[str, Any]) -> tuple[str, ...]:
    """What a new study can't do without: a frontier ends at the peak without AC unless told otherwise."""
    return ("target",) if asked.get("frontier") else ("target", "budget")


def _name_for(asked: dict[str, Any]) -> str:
    target = asked["target"]
    # Flavors of different families have the same name.
    named = target.removeprefix("torchtitan:") if target.startswith("torchtitan:") else Path(target).name
    parts = [named, asked.get("budget"), "frontier" if asked.get("frontier") else None]
    slug = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(filter(None, parts)).replace("%", "pct"))
    return slug.strip("-")[:100]


def _run(
    name: str, asked: dict[str, Any] | None, *, storage: str, wait: bool, trust_target: bool, as_json: bool
) -> None:
    from actune.cli.interruption import InterruptibleReporter, Interruption
    from actune.cli.progress import show_progress
    from actune.cli.render import render_study
    from actune.cli.trust import check_cluster, check_target
    from actune.cli.waiting import Patience
    from actune.report import study_document
    from actune.search import run_search
    from actune.store import Store, validate_study_name

    validate_study_name(name)
    if asked is not None:
        _check_named(asked)
    interruption = Interruption()
    interruption.install()
    with Store.open(storage, create=asked is not None) as store:

        def current() -> StudySettings:
            settings = _settings(store, name, asked)
            named = asked or {}
            check_target(settings.target, study=name, named_now="target" in named, trust=trust_target)
            check_cluster(settings.address, study=name, named_now="address" in named, trust=trust_target)
            return settings

        current()  # what is wrong with them is said before a wait, not after it; they may be others by then
        with show_progress(name) as shown:
            reporter = InterruptibleReporter(shown, interruption)
            verdict = run_search(
                store,
                name,
                current,
                log_folder=log_folder_of(storage, name),
                reporter=reporter,
                while_held=Patience(reporter, interruption) if wait else None,
            )
        document = study_document(store, name)
    if as_json:
        echo_json(document)
    else:
        render_study(document)
    _check_found(document, verdict)


def _check_named(asked: dict[str, Any]) -> None:
    """Checks what is named before a database is opened, which would be left behind by a mistyped name.

    Raises:
        UsageError: the target, space or sampler does not exist, the processes or the engine asked for can't be, there
            are fewer cards than workers, or a frontier has several budgets.
    """
    from actune.config import AUTO_SPACE, load_space
    from actune.engine import check_engine, worker_environments
    from actune.search import check_sampler
    from actune.target_spec import parse_target_spec

    if "target" in asked:
        parse_target_spec(asked["target"])
        device, nproc = asked.get("device", _DEFAULTS["device"]), asked.get("nproc_per_node", 1)
        check_processes(device, asked.get("world_size", 1), nproc)
        engine, cards = asked.get("engine", _DEFAULTS["engine"]), asked.get("devices", ())
        check_engine(engine, asked.get("address"), device, cards=cards)
        if engine == "local":
            worker_environments(device, asked.get("workers", 1), os.environ, nproc_per_node=nproc, cards=cards)
    if asked.get("space", AUTO_SPACE) != AUTO_SPACE:
        load_space(asked["space"])
    if "sampler" in asked:
        check_sampler(asked["sampler"])
    if asked.get("frontier") and len(Budget.parse_all(asked.get("budget", WHOLE))) > 1:
        raise UsageError(
            f"--frontier searches budgets of its own up to one --budget, not up to {asked['budget']}. Give one budget, "
            "or several without --frontier."
        )


def _settings(store: Store, name: str, asked: dict[str, Any] | None) -> StudySettings:
    """The settings of a new study, or of an existing one with what may change.

    Raises:
        UsageError: something asked for contradicts the existing study, or is missing for a new one.
    """
    from actune.config import AUTO_SPACE, load_space
    from actune.study_records import StudySettings

    if asked is None:
        return store.study(name).settings
    if store.has_study(name):
        return _continued(store.study(name).settings, name, asked)
    for required in _required(asked):
        if required not in asked:
            raise click.UsageError(f"Missing option '--{required}': there is no study '{name}' yet to take it from.")
    values = _DEFAULTS | {"budget": WHOLE} | asked
    space_yaml = "" if values["space"] == AUTO_SPACE else load_space(values["space"]).yaml_text
    return StudySettings(
        target=values["target"],
        budget=values["budget"],
        device=values["device"],
        space=values["space"],
        space_yaml=space_yaml,
        trials=values["trials"],
        sampler=values["sampler"],
        seed=values["seed"],
        workers=values["workers"],
        timeout_s=values["timeout"],
        trial_timeout_s=values["trial_timeout"],
        timed_pairs=TIMED_PAIRS,
        verdict_rounds=VERDICT_ROUNDS,
        world_size=values["world_size"],
        nproc_per_node=values["nproc_per_node"],
        tolerance=values["tolerance"],
        frontier=values["frontier"],
        devices=values["devices"],
        engine=values["engine"],
        address=values["address"],
    )


def _continued(before: StudySettings, name: str, asked: dict[str, Any]) -> StudySettings:
    from actune.config import AUTO_SPACE

    asked = {key: value for key, value in asked.items() if (key, value) != ("space", AUTO_SPACE)}
    if "budget" in asked and set(Budget.parse_all(asked["budget"])) == set(Budget.parse_all(before.budget)):
        del asked["budget"]  # the same ones, in another order
    for key in _FIXED:
        if key in asked and asked[key] != (kept := getattr(before, key)):
            option = "--" + key.replace("_", "-")
            was = f"with {option} {kept}, not {asked[key]}"
            if isinstance(kept, bool):
                was = f"with {option}" if kept else f"without {option}"
            raise UsageError(
                f"study '{name}' was started {was}. Go on with what it has by `actune resume {name}`, or choose "
                "another name with --study."
            )
    if asked.get("engine") == "local":
        asked.setdefault("address", None)  # the cluster that the study ran on before
    renamed = {"timeout": "timeout_s", "trial_timeout": "trial_timeout_s"}
    changes = {renamed.get(key, key): value for key, value in asked.items() if key not in _FIXED}
    return replace(before, **changes)


def _check_found(document: dict[str, Any], verdict: Verdict) -> None:
    """Raises what ends the command if there is no best plan."""
    if document["best"] is not None:
        return
    budget = f"{document['budget_bytes']} bytes ({format_bytes(document['budget_bytes'])})"
    if verdict.gradients:
        raise ActuneError(
            f"study '{document['study']}': {len(verdict.gradients)} plans fit the budget of {budget}, but each "
            "computes another loss or other gradients than the run without AC. Does the target draw random numbers of "
            "its own, or keep state between steps?"
        )
    if not document["trials"]:
        raise ActuneError(
            f"study '{document['study']}': no trial has ended within the timeout. "
            f"`actune resume {document['study']}` goes on."
        )
    smallest = verdict.smallest_peak_bytes
    if smallest is not None and smallest <= document["budget_bytes"]:
        raise InfeasibleError(
            f"no plan stays within the budget of {budget}: those that fit in their trials are over it in more steps on "
            "other batches. Raise the budget, or make the batch smaller.",
            smallest_peak_bytes=smallest,
        )
    reachable = (
        "No plan ran to its end."
        if smallest is None
        else f"The smallest peak that a plan reaches is {smallest} bytes ({format_bytes(smallest)}); that plan, "
        f"{verdict.smallest_peak_hash}, is stored with the study."
    )
    raise InfeasibleError(
        f"no plan fits the budget of {budget}. {reachable} Raise the budget, or make the batch smaller.",
        smallest_peak_bytes=smallest,
    )
