from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actune.config import (
    DEFAULT_PRESETS,
    MAX_TREATMENTS,
    MAX_YAML_BYTES,
    MenuEntry,
    StudyFile,
    load_space,
    load_study_file,
    parse_space,
    read_text,
    shipped_spaces,
    space_for,
)
from actune.errors import UsageError
from actune.plan import Treatment
from actune.records import LayerClass, ModelStructure
from actune.units import Budget

ROOT = Path(__file__).resolve().parent.parent


def menu_of(entry: str, head: str = "") -> tuple[MenuEntry, ...]:
    return parse_space(f"schema: 1\n{head}\nmenu:\n{entry}", name="test").menu


# Products of the alternatives, by hand from the files.
@pytest.mark.parametrize(
    ("name", "treatments", "modes"),
    [
        ("dense", 1 + 2 + 3 * 2 + 2, ("off",)),
        ("moe", 1 + 2 + 3 * 3 + 2 * 2 + 2 * 2, ("off",)),
        ("everything", 1 + 2 * 2 + 2 * 5 * 2 + 2 * 2 + 3, ("off", "inside", "layer", "model")),
    ],
)
def test_shipped_spaces(name: str, treatments: int, modes: tuple[str, ...]) -> None:
    space = load_space(name)
    assert len(space.menu) == treatments
    assert space.compile_modes == modes
    assert space.presets == DEFAULT_PRESETS
    assert space.description
    assert space.yaml_text == shipped_spaces()[name].read_text(encoding="utf-8")
    assert parse_space(space.yaml_text, name=name) == space


def test_no_shipped_space_is_left_out() -> None:
    assert list(shipped_spaces()) == ["dense", "everything", "moe"]


def test_each_makes_every_combination_beside_what_is_fixed() -> None:
    entries = menu_of(
        "  - policy: selective\n    early_stop: false\n    layers: [layers.0-3]\n    optional: true\n"
        "    each:\n      save_every_nth_mm: [1, 2]\n      save_ops: [default, [default, x]]\n"
        "      wrap: [layer, parts, [a.b]]\n"
    )
    assert len(entries) == len(set(entries)) == 12
    assert {entry.treatment.save_every_nth_mm for entry in entries} == {1, 2}
    assert {entry.treatment.save_ops for entry in entries} == {("default",), ("default", "x")}
    assert {(entry.wraps_parts, entry.treatment.wrap) for entry in entries} == {
        (False, (".",)),
        (True, (".",)),
        (False, ("a.b",)),
    }
    assert all(entry.optional and entry.layers == ("layers.0-3",) for entry in entries)
    assert not any(entry.treatment.early_stop for entry in entries)


def test_same_treatment_twice_is_one_entry() -> None:
    assert len(menu_of("  - policy: full\n  - policy: full\n    each:\n      wrap: [layer]\n")) == 1


def test_defaults() -> None:
    space = parse_space("schema: 1\nmenu: [policy: full]", name="test")
    assert (space.compile_modes, space.segments, space.presets) == (("off",), 3, DEFAULT_PRESETS)
    assert space.menu == (MenuEntry(Treatment("full")),)


@pytest.mark.parametrize("written", ["off", "'off'", "no", "false"])
def test_off_that_yaml_reads_as_false_is_off(written: str) -> None:
    space = parse_space(f"schema: 1\ncompile: [{written}, layer, off]\nmenu: [policy: full]", name="test")
    assert space.compile_modes == ("off", "layer")


def test_anchors_and_merge_keys_are_read() -> None:
    entries = menu_of("  - &base\n    policy: full\n    early_stop: false\n  - <<: *base\n    early_stop: true\n")
    assert [entry.treatment.early_stop for entry in entries] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no table of keys"),
        ("- a", "is no table of keys"),
        ("just text", "is no table of keys"),
        ("1: a", "is no table of keys"),
        ("schema: 1\nmenu:\n\t- policy: full", r"space 'test' is not YAML: .*\(line 3, column 1\)"),
        ("schema: 1\nmenu: [", r"is not YAML: .*\(line 2"),
        ("schema: 1\n--- \nschema: 1", "is not YAML"),
        ("schema: 1\nmenu: !!python/object:os.system {}", "is not YAML"),
        ("schema: 1\nmenu: *nothing", "is not YAML: found undefined alias"),
        ("schema: 1\nsegments: 2\nsegments: 3\nmenu: []", r"the key 'segments' stands twice \(line 3, column 1\)"),
        ("schema: 1\nmenu:\n  - {policy: full, policy: none}", "the key 'policy' stands twice"),
        ("schema: 1\n? [a]\n: b", "is not YAML"),
        ("schema: 1\ndescription: 2024-13-45", "has a value that can't be read"),
        ("schema: 1\nmenu: " + "[" * 5000, "has a value that can't be read"),
        ("menu: [policy: full]", "schema: None is not a version"),
        ("schema: 2\nmenu: [policy: full]", "schema: 2 is not a version"),
        ("schema: 1", "menu: Field required"),
        ("schema: 1\nmenu: []", "menu: the list is empty"),
        ("schema: 1\nmenu:", r"menu: .*valid list \(got None\)"),
        ("schema: 1\nmenu: {policy: full}", "menu: .*valid list"),
        ("schema: 1\nmenue: []\nmenu: []", r"unknown key 'menue'\. Did you mean 'menu'\?"),
        ("schema: 1\nsegments: 0\nmenu: [policy: full]", r"segments: 0 is out of range\. Expected 1 to 32"),
        ("schema: 1\nsegments: 33\nmenu: [policy: full]", "segments: 33 is out of range"),
        ("schema: 1\nsegments: two\nmenu: [policy: full]", r"segments: .*integer \(got 'two'\)"),
        ("schema: 1\ncompile: off\nmenu: [policy: full]", r"compile: .*list \(got False\)"),
        ("schema: 1\ncompile: []\nmenu: [policy: full]", "compile: the list is empty"),
        ("schema: 1\ncompile: [on]\nmenu: [policy: full]", "compile: True is not known. Expected some of: off, inside"),
        ("schema: 1\ncompile: [all]\nmenu: [policy: full]", "compile: 'all' is not known"),
        ("schema: 1\npresets: [fast]\nmenu: [policy: full]", "presets: 'fast' is no preset"),
        ("schema: 1\npresets: [full-every-0]\nmenu: [policy: full]", "'full-every-0' is no preset"),
    ],
)
def test_text_that_is_no_space(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_space(text, name="test")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{policy: ful}", r"menu\.1\.policy: .*'none', 'full', 'selective' or 'memory_budget' \(got 'ful'\)"),
        ("{}", r"menu\.1\.policy: Field required"),
        ("{policy: full, wrp: layer}", r"menu\.1: unknown key 'wrp'\. Did you mean 'wrap'\?"),
        ("{policy: full, wrap: whole}", "wrap: 'whole' is neither layer nor parts; name modules as a list"),
        ("{policy: full, wrap: []}", "menu 1: wrap: the list is empty"),
        ("{policy: full, wrap: [a, a.b]}", r"wrap: 'a\.b' lies inside 'a'"),
        ("{policy: none, wrap: parts}", r"wrap: .*no effect with policy none"),
        ("{policy: none, wrap: layer}", r"wrap: .*no effect with policy none"),
        ("{policy: memory_budget, memory_budget: 0.5, wrap: parts}", "no effect with policy memory_budget"),
        ("{policy: full, save_every_nth_mm: 2}", r"save_every_nth_mm: has no effect with policy = .full."),
        ("{policy: selective, save_every_nth_mm: -1}", "save_every_nth_mm: -1 is negative"),
        ("{policy: selective, save_every_nth_mm: 1.5}", r"integer \(got 1\.5\)"),
        ("{policy: selective, filter_by: size}", r"'shape' or 'name' \(got 'size'\)"),
        ("{policy: memory_budget}", "memory_budget: None is no share"),
        ("{policy: memory_budget, memory_budget: 2}", "memory_budget: 2"),
        ("{policy: full, layers: []}", "layers: the list is empty"),
        ("{policy: full, layers: [layers.5-2]}", "ends before it begins"),
        ("{policy: full, layers: ['layers[0]']}", "is not a pattern of FQNs"),
        ("{policy: full, each: {wrapp: [layer]}}", "unknown key 'wrapp'. Did you mean 'wrap'?"),
        ("{policy: full, each: {wrap: []}}", "each: 'wrap' has no values"),
        ("{policy: full, each: {wrap: layer}}", r"each\.wrap: .*list"),
        ("{policy: full, each: {early_stop: [true, 5]}}", r"early_stop: .*boolean \(got 5\)"),
        ("{policy: full, wrap: layer, each: {wrap: [layer]}}", "'wrap' stands both in the entry and under each"),
        ("{policy: full, each: {policy: [none]}}", "each: 'policy' is no knob"),
        ("{policy: full, each: {layers: [[layers.0]]}}", "each: 'layers' is no knob"),
        ("{policy: full, each: {optional: [true]}}", "each: 'optional' is no knob"),
    ],
)
def test_entry_that_is_none(entry: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        menu_of(f"  - {entry}")


def test_menu_is_not_multiplied_without_end() -> None:
    values = list(range(40))
    with pytest.raises(UsageError, match=f"more than {MAX_TREATMENTS} combinations"):
        menu_of(f"  - policy: selective\n    each: {{save_every_nth_mm: {values}, save_ops: {[['a']] * 40}}}")


def test_space_by_path_and_a_name_that_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema: 1\nmenu: [policy: full]\n", encoding="utf-8")
    assert load_space(str(path)).name == str(path)
    with pytest.raises(
        UsageError, match=r"'tiny' is neither a file nor one that comes with actune: dense, everything, moe"
    ):
        load_space("tiny")


def test_text_files_that_can_not_be_read(tmp_path: Path) -> None:
    large, binary = tmp_path / "large", tmp_path / "binary"
    large.write_bytes(b"#" * (MAX_YAML_BYTES + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "none", "can't be read: No such file"),
        (tmp_path, "can't be read: Is a directory"),
        (large, f"has {MAX_YAML_BYTES + 1} bytes; at most"),
        (binary, "is not UTF-8 text"),
    ):
        with pytest.raises(UsageError, match=f"study file .*{message}"):
            read_text(path, what="study file")


def test_shipped_studies_are_complete() -> None:
    paths = sorted((ROOT / "studies").glob("*.yaml"))
    assert paths
    for path in paths:
        study = load_study_file(path)
        assert study.target
        assert Budget.parse_all(study.budget or "")
        assert study.space is None or load_space(study.space)


def test_study_file(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("schema: 1\ntarget: moe-tiny\nbudget: 70%\ntimeout: 1h30m\ntrials: 16\n", encoding="utf-8")
    assert load_study_file(path) == StudyFile(target="moe-tiny", budget="70%", timeout="1h30m", trials=16)


@pytest.mark.parametrize(("written", "tolerance"), [("1%", "1%"), ("0.02", 0.02), ("0", 0.0)])
def test_study_file_of_a_frontier(tmp_path: Path, written: str, tolerance: str | float) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"schema: 1\ntarget: moe-tiny\nfrontier: true\ntolerance: {written}\n", encoding="utf-8")
    assert load_study_file(path) == StudyFile(target="moe-tiny", frontier=True, tolerance=tolerance)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("budget: 70", r"budget: .*string \(got 70\)"),
        ("timeout: 90", r"timeout: .*string \(got 90\)"),
        ("trials: '16'", r"trials: .*integer"),
        ("trials: yes", r"trials: .*integer \(got True\)"),
        ("tolerance: yes", "tolerance"),
        ("frontier: 8", r"frontier: .*boolean \(got 8\)"),
        ("study: no", r"study: .*string \(got False\)"),
        ("bugdet: 70%", "unknown key 'bugdet'. Did you mean 'budget'?"),
        ("storage: x", "unknown key 'storage'"),
    ],
)
def test_study_file_that_is_none(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"schema: 1\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_study_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "space"),
    [
        (("attention", "feed_forward"), "dense"),
        (("attention", "moe.experts"), "moe"),
        (("mlp.router",), "moe"),
        ((), "dense"),
    ],
)
def test_space_for_a_model(modules: tuple[str, ...], space: str) -> None:
    layer_class: Any = LayerClass("Block", ("layers.0",), (), modules, ())
    assert space_for(ModelStructure(("layers.0",), (layer_class,))) == space
