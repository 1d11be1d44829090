"""Help: complete, and quick since it imports nothing heavy."""

import subprocess
import sys

import click
import pytest

from actune.cli import actune as group
from actune.cli.search import _name_for

HEAVY = ("torch", "optuna", "sqlalchemy", "alembic", "pydantic", "rich")


@pytest.mark.parametrize("name", sorted(group.commands))
def test_help_of_a_command_lists_every_option_with_a_text(actune, name):
    command = group.commands[name]
    assert command.help
    help_text = actune(name, "--help").out
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
            assert all(option in help_text for option in parameter.opts)


def test_every_command_takes_json():
    for name, command in group.commands.items():
        assert "--json" in [option for parameter in command.params for option in parameter.opts], name


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from actune.cli import run; code = run(['--help'])\n"
        f"sys.exit(code or ', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "130 interrupted" in " ".join(ended.stdout.split())


def test_version(actune):
    from actune import __version__

    assert actune("--version").out == f"actune, version {__version__}\n"


def test_studies_of_flavors_that_are_named_alike_have_names_of_their_own():
    names = {
        _name_for({"target": f"torchtitan:{family}/debugmodel", "budget": "60%"}) for family in ("llama3", "qwen3")
    }
    assert names == {"llama3-debugmodel-60pct", "qwen3-debugmodel-60pct"}
    assert _name_for({"target": "path/to/file.py:Mine"}) == "file-py-Mine"
