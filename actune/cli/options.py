"""Options that several commands share, and values parsed as they are read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from actune.errors import ActuneError, UsageError
from actune.units import Budget, parse_duration_s

DEFAULT_STORAGE = "sqlite:///studies/actune.db"
DEFAULT_TRIAL_TIMEOUT = "15m"


class BudgetType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """`70GB`, `64GiB` or `60%`; stays text, which the study keeps."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, if it is a budget."""
        try:
            return Budget.parse(str(value)).text
        except UsageError as error:
            self.fail(str(error), param, ctx)


class BudgetsType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """One budget or several with commas between them; stays text, which the study keeps."""

    name = "budgets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, if it is budgets."""
        try:
            return ",".join(budget.text for budget in Budget.parse_all(str(value)))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class DevicesType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """`cuda:0,cuda:1`; becomes the names of the cards."""

    name = "devices"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, whose form the engine checks."""
        if isinstance(value, tuple):
            return value
        return tuple(card.strip() for card in str(value).split(","))


class ToleranceType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """`1%` or `0.01`; becomes a share."""

    name = "tolerance"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            self.fail(f"'{text}' is no share of a step time. Expected 0% to less than 100%, such as 1% or 0.01.")
        return share


class DurationType(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """`90s`, `15m`, `1h30m`; becomes seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            return parse_duration_s(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


storage_option = click.option(
    "--storage",
    metavar="URL",
    default=lambda: os.environ.get("ACTUNE_STORAGE", DEFAULT_STORAGE),
    show_default=f"$ACTUNE_STORAGE or {DEFAULT_STORAGE}",
    help="The database of studies, as a SQLAlchemy URL.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout; messages go to stderr in any case."
)
wait_option = click.option(
    "--wait", is_flag=True, help="If another process works on the study, wait until it is done, and go on from there."
)
trust_target_option = click.option(
    "--trust-target",
    is_flag=True,
    help="Go on although the study names a target's code or a Ray cluster that you have not named before, or code that "
    "has changed since.",
)
device_help = "cpu, cuda, cuda:N, or a simulated one, such as sim:h100."
MAX_WORLD_SIZE = 2**20
MAX_NPROC = 64
world_size_help = (
    "Measure one rank of so many. A simulated device shards parameters, gradients and optimizer state evenly; on a "
    "real one the target's parallelize() does, and the other ranks are faked."
)
nproc_help = "Processes of this machine that train one model: each trial is a job of so many, as under torchrun."
target_help = (
    "A built-in target (see `actune targets`), hf:path/to/config.json, torchtitan:family/flavor, or your own "
    "as package.module:attr or path/to/file.py:attr; each may end in ?key=value&…"
)


def echo_json(document: dict[str, Any]) -> None:
    """One document on stdout, with a line for each entry of a list. NaN is an error: no reader has to expect one."""
    click.echo("{\n" + ",\n".join(f"  {_text(key)}: {_value(value)}" for key, value in document.items()) + "\n}")


def _value(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return _text(value)
    return "[\n" + ",\n".join(f"    {_text(entry)}" for entry in value) + "\n  ]"


# Without `indent`, which the standard library's fast encoder does not know.
_text = json.JSONEncoder(allow_nan=False).encode


@contextmanager
def scratch_log_folder(command: str) -> Iterator[Path]:
    """A folder for what workers print. It stays only if the block ends in an error whose message names files in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"actune-{command}-"))
    try:
        yield folder
    except ActuneError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def log_folder_of(storage: str, study: str) -> Path:
    """Where workers' output and tracebacks of a study go: beside its SQLite file, else under the current folder."""
    path = storage.removeprefix("sqlite:///")
    parent = Path(path).parent if path != storage else Path("studies")
    return parent / "logs" / study
