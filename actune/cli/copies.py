"""`actune copy-study` and `backup`: studies in another place."""

from __future__ import annotations

from pathlib import Path

import click

from actune.cli.options import echo_json, json_option, storage_option


@click.command("copy-study")
@click.argument("name")
@click.option("--to", "to", metavar="URL", help="The database that gets the copy. Default: the same one, with --as.")
@click.option("--as", "new_name", metavar="NEW", help="The copy's name. Default: the same, in another database.")
@storage_option
@json_option
def copy_study(name: str, to: str | None, new_name: str | None, storage: str, as_json: bool) -> None:
    """Copy a study with all that it knows, so that `actune resume` goes on with the copy.

    While a search works on the study, the copy is of one moment of it.
    """
    from actune.search import copy_whole_study
    from actune.store import Store

    if to is None and new_name is None:
        raise click.UsageError("Name another database by --to, another name by --as, or both.")
    with Store.open(storage, create=False) as source:
        source.study(name)  # before a database is made for it
        with Store.open(storage if to is None else to, create=to is not None) as destination:
            copied = copy_whole_study(source, name, destination, new_name or name)
            place = destination.label
    if as_json:
        echo_json(
            {
                "study": name,
                "to": place,
                "copy": copied.study,
                "trials": copied.trials,
                "measurements": copied.measurements,
                "predictions": copied.predictions,
                "finished": copied.has_verdict,
                "optuna_trials": copied.optuna_trials,
            }
        )
        return
    ended = "with its verdict" if copied.has_verdict else "not finished"
    click.echo(
        f"copied study '{name}' to {place} as '{copied.study}': {copied.trials} trials ({copied.measurements} "
        f"measurements that were not there yet), {copied.optuna_trials} trials of Optuna's, {copied.predictions} "
        f"predictions, {ended}"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@storage_option
@json_option
def backup(file: Path, force: bool, storage: str, as_json: bool) -> None:
    """Copy a SQLite database of studies to FILE, also while a search writes to it."""
    from actune.store import back_up
    from actune.units import format_bytes

    size_bytes = back_up(storage, file, force=force)
    if as_json:
        echo_json({"file": str(file), "file_bytes": size_bytes})
    else:
        click.echo(f"wrote {file} ({format_bytes(size_bytes)})")
