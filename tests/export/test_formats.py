"""Options of `export_plan`, names, and text that must not become code."""

import ast
import tomllib
from typing import Any

import pytest

from actune.errors import PlanError, UsageError
from actune.export import FORMATS, export_plan
from actune.export.spec import identifier, lines_literal, strings_literal
from actune.plan import Treatment, parse_plan
from tests.export.models import MIXED, SIX_LAYERS, plan_of

NASTY = (
    "'''\nimport os\nos.abort()\n'''",
    '"""\nraise SystemExit\n"""',
    "\\",
    "{evil} %s \\N{BULLET}",
    "a\u2028b\x0cc\r\nd\x00e",
    "end\\'",
)


def test_actune_is_the_plan_with_provenance() -> None:
    plan = plan_of(("layers.0", Treatment("full")), target="dense-tiny")
    export = export_plan(plan, SIX_LAYERS, format="actune", name="My study")
    ((name, text),) = export.files
    assert name == "my_study.toml"
    assert parse_plan(text) == plan
    assert parse_plan(text).provenance == {"target": "dense-tiny"}
    assert export.lost == ()
    assert "actune.load_plan" in export.next_steps


def test_formats_are_described() -> None:
    assert list(FORMATS) == ["actune", "torchtitan-toml", "torchtitan"]
    assert all("\n" not in text and text for text in FORMATS.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "yaml"}, "--format yaml: not a format. Expected one of: actune, torchtitan-toml, torchtitan."),
        ({"format": "actune", "into": ""}, "--into: --format actune makes a file of its own"),
        ({"format": "torchtitan", "into": ""}, "--into: --format torchtitan makes a file of its own"),
        ({"format": "actune", "version": "1"}, "--version 1: --format actune has one version only"),
        ({"format": "torchtitan", "version": "0.2.2"}, "--version 0.2.2: --format torchtitan is for torchtitan 0.3.0"),
        ({"format": "torchtitan-toml", "base": "a:b"}, "--base a:b: --format torchtitan-toml extends no config"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        export_plan(MIXED, SIX_LAYERS, name="x", **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("format", FORMATS)
def test_plan_for_another_model(format: str) -> None:
    with pytest.raises(PlanError, match=r"matches no layer. The model has: layers\.0-5"):
        export_plan(plan_of(("decoder.*", Treatment("full"))), SIX_LAYERS, format=format, name="x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My study", "my_study"),
        ("70B, 8×H100!", "plan_70b_8_h100"),
        ("class", "plan_class"),
        ("match", "plan_match"),
        ("../../etc/passwd", "etc_passwd"),
        ("x\nimport os", "x_import_os"),
        ("研究", "plan"),
        ("__init__", "init"),
        ("", "plan"),
    ],
)
def test_identifier(name: str, expected: str) -> None:
    assert identifier(name) == expected


@pytest.mark.parametrize("text", [*NASTY, "", "a\n", "\n\na"])
def test_literals_give_the_text_back(text: str) -> None:
    assert ast.literal_eval(lines_literal(text)) == text
    assert ast.literal_eval(strings_literal((text,) * 7)) == (text,) * 7


@pytest.mark.parametrize("format", ["torchtitan-toml", "torchtitan"])
@pytest.mark.parametrize("text", NASTY)
def test_provenance_and_names_do_not_become_code(format: str, text: str) -> None:
    harmless = export_plan(plan_of(("layers.0", Treatment("full")), target="t"), SIX_LAYERS, format=format, name="x")
    nasty = export_plan(plan_of(("layers.0", Treatment("full")), target=text), SIX_LAYERS, format=format, name="x")
    source, other = nasty.files[-1][1], harmless.files[-1][1]
    assert _shape(source) == _shape(other)
    embedded = next(value for value in _strings(source) if value.startswith("schema = 1\n"))
    assert tomllib.loads(embedded)["provenance"]["target"] == text
    named = export_plan(MIXED, SIX_LAYERS, format=format, name=text)
    for _, source in named.files[-1:]:
        ast.parse(source)
        assert "os.abort" not in source
        assert "SystemExit" not in source


def _shape(source: str) -> str:
    """The syntax tree with every string taken out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def _strings(source: str) -> list[str]:
    return [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
