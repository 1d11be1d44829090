"""Names and messages from a stranger's database are text: on a terminal, in a picture, and in generated code."""

from __future__ import annotations

import ast
import io
import shutil
import sqlite3
import tomllib
from contextlib import closing
from pathlib import Path

import bad_input_study
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD_TEXTS
from rich.table import Table

from actune.cli import run
from actune.cli.console import TextConsole
from actune.cli.terminal import printable
from actune.export import export_plan
from actune.export.spec import identifier, lines_literal, strings_literal
from actune.plan import Plan, Rule, Treatment, parse_plan
from actune.records import LayerClass, ModelStructure

HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/red] :cat: \x9b31m\u202eabc\ud800"
SHOWN = r"\x1b]0;owned\x07\x1b[2J[red]x[/red] :cat: \x9b31m\u202eabc\ud800"
STRINGS = st.one_of(st.text(max_size=30), st.sampled_from(ODD_TEXTS)).filter(lambda text: text.strip("."))


def test_only_text_reaches_the_terminal() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("é漢字 𝔘\n\t–") == "é漢字 𝔘\n\t–"


def test_rich_shows_text_as_it_is() -> None:
    out = io.StringIO()
    console = TextConsole(file=out, width=200, force_terminal=True)
    console.print(HOSTILE)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    text = out.getvalue()
    assert text.count(SHOWN.replace(":cat:", ":cat:")) == 4
    assert not any(unsafe in text for unsafe in ("\x07", "\x9b", "\u202e", "\x1b]", "\x1b[2J", "🐱"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.db"
    bad_input_study.make_study(path)
    return path


COLUMNS = [
    ("actune_studies", "name"),
    ("actune_studies", "reference_hash"),
    ("actune_trials", "preset"),
    ("actune_measurements", "message"),
    ("actune_plans", "toml"),
    ("actune_predictions", "preset"),
    ("actune_verdicts", "best_toml"),
    ("actune_verdicts", "best_hash"),
    ("actune_alembic_version", "version_num"),
]


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_no_column_reaches_the_terminal_raw(sound, tmp_path, capsys, table: str, column: str) -> None:
    path = tmp_path / "altered.db"
    shutil.copy(sound, path)
    hostile = HOSTILE.replace("\ud800", "")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        (rowid,) = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (hostile, rowid))
    seen = ""
    for command in (
        ["studies"],
        ["show", "sound"],
        ["frontier", "sound"],
        ["show", "sound", "--json"],
        ["resume", "sound"],
    ):
        run([*command, "--storage", f"sqlite:///{path}"])
        captured = capsys.readouterr()
        assert "internal error" not in captured.err
        seen += captured.out + captured.err
    assert not any(character in seen for character in "\x1b\x07\x9b\u202e")


def test_picture_of_a_hostile_study(sound, tmp_path, capsys) -> None:
    path = tmp_path / "altered.db"
    shutil.copy(sound, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE actune_predictions SET preset = ? WHERE preset = 'full'", ("$\\frac{$ \x1b[2J",))
    code = run(["frontier", "sound", "--storage", f"sqlite:///{path}", "--plot", str(tmp_path / "p.svg")])
    assert (code, "internal error" in capsys.readouterr().err) == (0, False)
    assert (tmp_path / "p.svg").read_text().endswith("</svg>\n")


def structure(names: list[str]) -> ModelStructure:
    return ModelStructure(tuple(names), (LayerClass("L", tuple(names), (), (), ()),))


def skeleton(source: str) -> str:
    """A module's code without the values of its strings, tuples of strings and docstrings."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.Constant("") if isinstance(node.value, str) else node

    return ast.dump(Blank().visit(ast.parse(source)))


FORMATS = [
    ("torchtitan", None, "config.py"),
    ("torchtitan-toml", "0.2.2", "ac.py"),
    ("torchtitan-toml", "0.1.0", "ac.py"),
]


@given(st.dictionaries(STRINGS, STRINGS, max_size=3), STRINGS, st.lists(STRINGS, max_size=2), st.sampled_from(FORMATS))
def test_generated_module_has_no_other_code_whatever_the_names(provenance, name, filters, made) -> None:
    format_, version, ending = made
    provenance = {key.replace("\ud800", ""): value.replace("\ud800", "") for key, value in provenance.items()}
    filters = tuple(text.replace("\ud800", "x") for text in filters)

    def export(name: str, provenance: dict[str, str], filters: tuple[str, ...]):
        rule = Rule(("layers.0",), Treatment("selective", filter_fqns=filters))
        plan = Plan((rule,), "layer", provenance)
        exported = export_plan(plan, structure(["layers.0", "layers.1"]), format=format_, version=version, name=name)
        ((_, source),) = [file for file in exported.files if file[0].endswith(ending)]
        return plan, exported, source

    plan, exported, source = export(name, provenance, filters)
    assert source.isascii()
    plain_name = identifier(name)
    assert skeleton(source) == skeleton(export(plain_name, {}, ())[2])
    embedded = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("PLAN", "LAYERS")
    }
    read = parse_plan(embedded["PLAN"])
    assert (read.rules, dict(read.provenance)) == (plan.rules, provenance)
    assert embedded["LAYERS"] == ("layers.0", "layers.1")
    for file_name, text in exported.files:
        assert Path(file_name).name == file_name
        assert file_name.rpartition(".")[0].isidentifier()
        if file_name.endswith(".toml"):
            assert tomllib.loads(text)["experimental"]["custom_import"].isidentifier()


@given(st.lists(st.one_of(st.text(), st.sampled_from(ODD_TEXTS)), max_size=9))
def test_literals_are_their_strings(texts: list[str]) -> None:
    assert ast.literal_eval(strings_literal(tuple(texts))) == tuple(texts)
    for text in texts:
        assert ast.literal_eval(lines_literal(text)) == text


@given(STRINGS)
def test_name_of_a_file_stays_in_its_folder(name: str) -> None:
    made = identifier(name)
    assert made.isidentifier()
    assert made.isascii()


def test_export_to_a_terminal_is_text(sound, tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "altered.db"
    shutil.copy(sound, path)
    toml = 'schema = 1\n[provenance]\nnote = "\x9b2J\u202e"\n'
    with closing(sqlite3.connect(path)) as connection, connection:
        text = connection.execute("SELECT comparison FROM actune_verdicts").fetchone()[0]
        connection.execute(
            "UPDATE actune_verdicts SET comparison = ?", (text.replace('"budgets":[', '"budgets":[],"x":['),)
        )
        connection.execute("UPDATE actune_verdicts SET best_toml = ?", (toml,))
    run(["export", "sound", "--storage", f"sqlite:///{path}"])
    assert "\x9b2J\u202e" in capsys.readouterr().out  # to the letter in a pipe
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run(["export", "sound", "--storage", f"sqlite:///{path}"])
    assert r"\x9b2J\u202e" in capsys.readouterr().out
