from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actune.errors import UsageError
from actune.target_spec import BUILTIN_TARGETS, TargetSpec, parse_target_spec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    (tmp_path / "config.json").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "family", "location", "attribute", "options"),
    [
        ("dense-tiny", "builtin", "dense-tiny", "", ()),
        ("moe-tiny?layers=2&seq=64", "builtin", "moe-tiny", "", (("layers", "2"), ("seq", "64"))),
        ("hf:config.json?batch=1", "hf", "config.json", "", (("batch", "1"),)),
        ("torchtitan:qwen3/30B-A3B?layers=4", "torchtitan", "qwen3/30B-A3B", "", (("layers", "4"),)),
        ("mine.py:Mine", "file", "mine.py", "Mine", ()),
        ("./mine.py:Mine?depth=3&name=a=b", "file", "./mine.py", "Mine", (("depth", "3"), ("name", "a=b"))),
        ("package.module:attr", "module", "package.module", "attr", ()),
    ],
)
def test_forms(
    folder: Path, text: str, family: str, location: str, attribute: str, options: tuple[tuple[str, str], ...]
) -> None:
    spec = parse_target_spec(text)
    assert (spec.text, spec.family, spec.location, spec.attribute) == (text, family, location, attribute)
    assert spec.options == options


def test_a_path_may_hold_a_colon(folder: Path) -> None:
    (folder / "a:b.py").touch()
    spec = parse_target_spec("a:b.py:Mine")
    assert (spec.family, spec.location, spec.attribute) == ("file", "a:b.py", "Mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no target is named"),
        ("dense-tny", r"no built-in 'dense-tny'\. Did you mean .*dense-tiny.* Expected .*moe-tiny-12"),
        ("zoo:llama3/debugmodel", r"'zoo' is no family of targets\. Expected .*hf:.*torchtitan:.*\.py:attr"),
        ("torchtitan:llama3", r"'llama3' is no model of torchtitan\. Expected family/flavor"),
        ("torchtitan:/debugmodel", r"'/debugmodel' is no model of torchtitan"),
        ("torchtitan:llama3/debugmodel?depth=2", "unknown option 'depth'"),
        ("hf:nowhere.json", r"'nowhere\.json' does not exist"),
        ("hf:.", r"'\.' is a folder"),
        ("nowhere.py:Mine", r"'nowhere\.py' does not exist"),
        ("mine.py", r"Expected mine\.py:NAME"),
        ("mine.py:", "'' is no name"),
        ("mine.py:a-b", "'a-b' is no name"),
        ("config.json", r"write hf:config\.json"),
        ("dense-tiny?layer=2", r"unknown option 'layer'\. Did you mean 'layers'\? Known options: layers .*, batch"),
        ("dense-tiny?layers=two", "layers=two is not a number of layers"),
        ("dense-tiny?layers=0", "layers=0 is not"),
        ("hf:config.json?seq=-1", "seq=-1 is not"),
        ("dense-tiny?layers=2&layers=3", "'layers' is given twice"),
        ("dense-tiny?layers", "'layers' has another form than key=value"),
        ("mine.py:Mine?class=2", "'class' can't be a keyword argument"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_target_spec(text)


def test_a_spec_is_checked_at_construction() -> None:
    with pytest.raises(UsageError, match="'zoo' is no family"):
        TargetSpec("x", "zoo", "x", "")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no module's dotted name"):
        TargetSpec("x", "module", "a/b", "attr")


def test_sizes() -> None:
    spec = parse_target_spec("dense-tiny?seq=32")
    assert spec.size("seq") == 32
    assert spec.size("batch") is None


def test_the_parent_process_needs_no_torch() -> None:
    code = "import sys, actune.target_spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_built_in_is_described() -> None:
    assert all(len(text) > 10 for text in BUILTIN_TARGETS.values())
