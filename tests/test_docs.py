"""What the documents say exists: every command they show parses, every command there is stands in the README."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from actune.cli import actune
from actune.plan import parse_plan

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def shown_commands():
    for text in (README, REFERENCE):
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                command = line.removeprefix("$ ").strip()
                if command.startswith("actune "):
                    yield command


@pytest.mark.parametrize("command", sorted(set(shown_commands())))
def test_shown_command_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command, comments=True)[1:]
    assert name in actune.commands
    actune.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("name", sorted(actune.commands))
def test_every_command_is_in_the_readme(name):
    assert f"actune {name}" in README


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_its_test():
    rows = [line for line in RELIABILITY.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert len(rows) > 40
    for row in rows:
        test = row.strip("|").split(" | ")[-1].strip(" `")
        if test.startswith("python "):
            assert (ROOT / test.split()[1]).exists(), row
        elif test != "the same":  # as in the row above
            path, _, name = test.partition("::")
            assert name in functions_of(ROOT / "tests" / path), row


def test_the_reference_plan_is_a_plan():
    plan = parse_plan(re.search(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)[1])
    assert [rule.treatment.policy for rule in plan.rules] == ["selective", "full"]


def test_the_reference_space_is_a_space():
    from actune.config import parse_space

    space = parse_space(re.search(r"```yaml\n(.*?)```", REFERENCE, re.DOTALL)[1], name="reference")
    assert len(space.menu) == 1 + 2 + 2 * 3 * 2
