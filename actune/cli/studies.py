"""`actune studies`, `show` and `export`: what is stored, and getting it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from actune.cli.options import echo_json, json_option, storage_option
from actune.cli.reading import without_collecting
from actune.cli.terminal import put, say
from actune.errors import UsageError

if TYPE_CHECKING:
    from actune.store import Store
    from actune.study_records import StudyRecord


TRIALS_LISTED = 50


@click.command()
@storage_option
@json_option
def studies(storage: str, as_json: bool) -> None:
    """List the studies of a database."""
    from actune.cli.render import render_studies
    from actune.report import studies_document
    from actune.store import Store

    with without_collecting(), Store.open(storage, create=False) as store:
        document = studies_document(store.studies())
    if as_json:
        echo_json(document)
    else:
        render_studies(document)


@click.command()
@click.argument("name")
@click.option("--all", "with_all", is_flag=True, help="Every trial, also where there are many. --json always has all.")
@storage_option
@json_option
def show(name: str, with_all: bool, storage: str, as_json: bool) -> None:
    """Show a study: its trials, presets and best plan."""
    from actune.cli.render import render_study
    from actune.report import study_document
    from actune.store import Store

    with without_collecting():
        with Store.open(storage, create=False) as store:
            document = study_document(store, name)
        if as_json:
            echo_json(document)
        else:
            render_study(document, with_all=with_all)


@click.command()
@click.argument("name")
@click.option(
    "--format",
    "format_",
    metavar="F",
    default="actune",
    show_default=True,
    help="actune (TOML), torchtitan-toml (0.1.0 to 0.2.2), or torchtitan (0.3.0).",
)
@click.option("--trial", type=int, metavar="N", help="The plan of this trial instead of the best one.")
@click.option(
    "--budget",
    metavar="B",
    help="Of a study with several: the best plan within this one, as it was written or in bytes. Default: the largest.",
)
@click.option("--version", metavar="V", help="Of the program that the export is for.")
@click.option("--base", metavar="B", help="torchtitan: the config to extend, such as llama3:llama3_8b.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    help="torchtitan-toml: an existing config, whose other keys and comments are kept.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="Where to write: a file, or a folder by a slash at its end. Default: into --into, else to stdout.",
)
@click.option("--approximate", is_flag=True, help="Write the nearest that the format can say, and report what is lost.")
@storage_option
@json_option
def export(
    name: str,
    format_: str,
    trial: int | None,
    budget: str | None,
    version: str | None,
    base: str | None,
    into: Path | None,
    output: str | None,
    approximate: bool,
    storage: str,
    as_json: bool,
) -> None:
    """Export a study's best plan, as actune's TOML or into a training config."""
    from actune.config import read_text
    from actune.export import export_plan, write_export
    from actune.store import Store, stored_plan

    with Store.open(storage, create=False) as store:
        study = store.study(name)
        if budget is not None and trial is not None:
            raise UsageError("--budget and --trial name a plan each. Give one of them.")
        toml = _best_toml(store, study, budget) if trial is None else _trial_toml(store, name, trial)
    exported = export_plan(
        stored_plan(toml),
        study.target.structure,
        format=format_,
        version=version,
        into=None if into is None else read_text(into, what="config"),
        into_name=str(into),
        approximate=approximate,
        base=base,
        name=name,
    )
    for line in exported.lost:
        say(f"lost: {line}")
    path = into if output is None else _output_path(output)
    if path is None and len(exported.files) > 1 and not as_json:
        names = ", ".join(file_name for file_name, _ in exported.files)
        raise UsageError(f"--format {format_} makes {len(exported.files)} files here ({names}). Name a place by -o.")
    written = [] if path is None else write_export(exported, path)
    for file_path in written:
        say(f"wrote {file_path}")
    if as_json:
        echo_json(
            {
                "study": name,
                "format": format_,
                "files": [{"name": file_name, "text": text} for file_name, text in exported.files],
                "written": [str(file_path) for file_path in written],
                "lost": list(exported.lost),
                "next_steps": exported.next_steps,
            }
        )
    elif path is None:
        put(exported.files[0][1])
    else:
        say(exported.next_steps)


def _output_path(output: str) -> Path:
    """Where to write. A slash at the end says that it is a folder, which is made if it is not there."""
    path = Path(output)
    if output.endswith("/"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"-o {output}: the folder can't be made: {error.strerror}.") from None
    return path


def _trial_toml(store: Store, name: str, number: int) -> str:
    trials = {trial.number: trial for trial in store.trials(name, with_pairs=False)}
    if number not in trials:
        known = ", ".join(map(str, list(trials)[:TRIALS_LISTED])) or "none yet"
        more = f" and {len(trials) - TRIALS_LISTED} more" if len(trials) > TRIALS_LISTED else ""
        raise UsageError(f"study '{name}' has no finished trial {number}. It has: {known}{more}.")
    return trials[number].plan_toml


def _best_toml(store: Store, study: StudyRecord, budget: str | None) -> str:
    """The best plan within a budget of the study; within the largest if none is named."""
    verdict = store.verdict(study.name)
    budget_bytes = study.budget_bytes if budget is None else _budget_bytes(study, budget)
    if verdict is None:
        raise UsageError(
            f"study '{study.name}' has no best plan yet. Let it end by `actune resume {study.name}`, or export a trial "
            "by --trial N."
        )
    of_budget = {decided.budget_bytes: decided.best_toml for decided in verdict.budgets}
    # A verdict from before there could be several budgets speaks of its one alone.
    toml = of_budget.get(budget_bytes) if verdict.budgets and budget_bytes is not None else verdict.best_toml
    if toml is None:
        raise UsageError(
            f"study '{study.name}' found no plan that fits{f' {budget}' if budget else ''} and is equal to no AC. "
            "Export a trial by --trial N."
        )
    return toml


def _budget_bytes(study: StudyRecord, text: str) -> int:
    """The size of the study's budget that is called so.

    Raises:
        UsageError: the study has none.
    """
    from actune.report import named_budgets
    from actune.units import Budget, format_bytes

    named, sizes = named_budgets(study), study.budgets_bytes or ()
    for name, size_bytes in named.items():
        if name.replace(" ", "") == text.replace(" ", ""):
            return size_bytes
    try:
        asked_bytes = Budget.parse(f"{text}B" if text.strip().isdecimal() else text).absolute_bytes
    except UsageError:
        asked_bytes = None
    if asked_bytes is not None and asked_bytes in sizes:
        return asked_bytes
    names = {size: name for name, size in named.items()}
    known = [f"{names[size]} ({size} bytes)" if size in names else f"{size}B ({format_bytes(size)})" for size in sizes]
    raise UsageError(f"study '{study.name}' has no budget '{text}'. It has: {', '.join(known) or 'none yet'}.")
