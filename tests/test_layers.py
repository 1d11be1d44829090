"""The rooms and their rules, read from the source: imports point one way, and each library has one home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "actune"

# Each room may import itself and what its line names. `values` are the plain modules at the top.
VALUES = {
    "errors",
    "files",
    "units",
    "boundary",
    "tomldoc",
    "records",
    "plan",
    "config",
    "statistics",
    "target_spec",
    "step_profile",
    "op_trace",
    "device_spec",
    "predictions",
    "racing",
    "study_records",
    "stragglers",
}
MAY_IMPORT = {
    "store": VALUES,
    "engine": VALUES,
    "cost": VALUES,
    "search": VALUES | {"store", "engine", "cost"},
    "report": VALUES | {"store"},
    "export": VALUES,
    "cli": VALUES | {"store", "engine", "cost", "search", "report", "export"},
    "__main__": {"cli"},
    # The worker's side
    "profiler": VALUES,
    "ac": VALUES | {"profiler"},
    "targets": VALUES,
    "measure": VALUES | {"profiler", "ac", "targets"},
    "worker": VALUES | {"measure"},
}
WORKER_SIDE = {"profiler", "ac", "targets", "measure", "worker"}
HOMES = {
    "torch": WORKER_SIDE,
    "transformers": {"targets"},
    "torchtitan": {"targets"},
    "numpy": WORKER_SIDE | {"cost"},
    "scipy": {"cost"},
    "optuna": {"search"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "filelock": {"store"},
    "ray": {"engine"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"cli"},
    "pydantic": {"boundary"},
    "yaml": {"config"},
    "tomlkit": {"tomldoc"},
}


def room_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports_of(path):
    """Every module that a file imports, wherever in the file; not under TYPE_CHECKING of the package's own front."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_room_has_a_rule():
    assert {room_of(path) for path in FILES} == VALUES | MAY_IMPORT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    allowed = MAY_IMPORT.get(room, VALUES) | {room}
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "actune" and len(parts) > 1:
            assert parts[1] in allowed, f"{room} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_one_home(path):
    for module in imports_of(path):
        library = module.split(".")[0]
        if library in HOMES:
            assert room_of(path) in HOMES[library], f"{library} is at home in {HOMES[library]}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_one_idea_each(path):
    assert len(path.read_text().splitlines()) <= 400


def test_ray_is_imported_in_one_file():
    found = {path.name for path in FILES if "ray" in {module.split(".")[0] for module in imports_of(path)}}
    assert found == {"driver.py"}


PARENT_SIDE = (
    "import sys, actune, actune.cli, actune.cli.progress, actune.cli.render, actune.search, actune.report, "
    "actune.export, actune.store, actune.engine, actune.engine.on_ray\n"
)
THE_WORKERS_SIDE = "import sys, actune.worker, actune.measure, actune.targets.hf, actune.targets.torchtitan\n"


@pytest.mark.parametrize(
    ("imports", "never"),
    [
        (PARENT_SIDE, {"torch", "transformers", "torchtitan", "matplotlib", "ray"}),
        (THE_WORKERS_SIDE, {"optuna", "sqlalchemy", "click", "alembic", "rich", "torchtitan"}),
        (
            "import sys, actune.cli\n",
            {"torch", "optuna", "sqlalchemy", "alembic", "rich", "pydantic", "yaml", "matplotlib", "ray"},
        ),
    ],
    ids=["parent", "worker", "help"],
)
def test_what_is_never_loaded(imports, never):
    code = imports + f"print(sorted(set(sys.modules) & {never!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout
