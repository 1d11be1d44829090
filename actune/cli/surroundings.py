"""`actune targets`, `spaces` and `doctor`: what there is, and whether this machine is ready."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from actune.cli.options import device_help, echo_json, json_option, scratch_log_folder, storage_option
from actune.errors import ActuneError

_PACKAGES = ("torch", "optuna", "sqlalchemy", "alembic", "pydantic", "click")
_OPTIONAL_PACKAGES = ("transformers", "torchtitan")


@click.command()
@json_option
def targets(as_json: bool) -> None:
    """List the built-in targets and the forms of others."""
    from actune.cli.render import render_pairs
    from actune.target_spec import BUILTIN_TARGETS

    forms = {
        "hf:path/to/config.json": "a model of the transformers library, from its config, with random weights",
        "torchtitan:family/flavor": "a language model of torchtitan's registry, such as torchtitan:llama3/debugmodel",
        "path/to/file.py:attr": "your own: a Target class, or a callable that returns one or a model",
        "package.module:attr": "the same, from an importable module",
    }
    if as_json:
        echo_json({"targets": dict(BUILTIN_TARGETS), "forms": forms})
    else:
        render_pairs("built-in targets", BUILTIN_TARGETS)
        render_pairs("others", forms)


@click.command()
@json_option
def spaces(as_json: bool) -> None:
    """List the search spaces that come with actune."""
    from actune.cli.render import render_pairs
    from actune.config import load_space, shipped_spaces

    found = {name: load_space(name).description for name in shipped_spaces()}
    if as_json:
        echo_json(
            {"spaces": {name: {"description": found[name], "path": str(p)} for name, p in shipped_spaces().items()}}
        )
    else:
        render_pairs("search spaces", {f"{name} ({path})": found[name] for name, path in shipped_spaces().items()})


@click.command()
@click.option("--device", default="cpu", show_default=True, metavar="D", help=device_help)
@storage_option
@json_option
def doctor(device: str, storage: str, as_json: bool) -> None:
    """Check that this machine is ready: packages, the database, and a real measurement on the device."""
    from actune.cli.render import render_checks

    checks = [*_package_checks(), _check_storage(storage), _check_device(device)]
    ready = all(check["ok"] for check in checks)
    if as_json:
        echo_json({"ready": ready, "checks": checks})
    else:
        render_checks(checks)
    if not ready:
        raise ActuneError("this machine is not ready: see the checks that failed.")


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}


def _package_checks() -> list[dict[str, Any]]:
    checks = [_check("python", sys.version_info >= (3, 11), sys.version.split()[0])]
    for package in (*_PACKAGES, *_OPTIONAL_PACKAGES):
        try:
            checks.append(_check(package, True, version(package)))
        except PackageNotFoundError:
            is_optional = package in _OPTIONAL_PACKAGES
            checks.append(_check(package, is_optional, "not installed" + (" (optional)" if is_optional else "")))
    return checks


def _check_storage(storage: str) -> dict[str, Any]:
    from actune.store import Store
    from actune.store.location import parse_location  # whose label holds no password

    try:
        with Store.open(storage, create=False) as store:
            return _check("storage", True, f"{len(store.studies())} studies at {parse_location(storage).label}")
    except ActuneError as error:
        # A database that is not there yet is no fault: search creates it.
        return _check("storage", error.exit_code == 2, str(error))


def _check_device(device: str) -> dict[str, Any]:
    from actune.engine import LocalEngine
    from actune.plan import Plan, dump_plan
    from actune.records import LoadTarget, MeasurePlan
    from actune.units import format_bytes

    load = LoadTarget("dense-tiny?layers=1&batch=1&seq=32", device, seed=0)
    try:
        with (
            scratch_log_folder("doctor") as folder,
            LocalEngine(load, workers=1, timeout_s=300, log_folder=folder) as engine,
        ):
            environment = engine.load().environment
            measurement = engine.measure(MeasurePlan(dump_plan(Plan()), None, None, timed_pairs=0))
    except ActuneError as error:
        return _check("device", False, str(error))
    name = f"{device}: {environment.device_name}"
    if measurement.peak_bytes is None:
        return _check("device", False, f"{name}: a tiny model ends with '{measurement.outcome}': {measurement.message}")
    return _check("device", True, f"{name}; a tiny model peaks at {format_bytes(measurement.peak_bytes)}")
