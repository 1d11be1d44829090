from __future__ import annotations

import pickle
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from actune.errors import TargetError, UsageError
from actune.target_spec import parse_target_spec
from actune.targets import load_target, source_fingerprint

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_target.py"

SOURCE = """
    from __future__ import annotations

    from dataclasses import dataclass

    import torch
    from torch import nn


    @dataclass
    class Options:
        depth: int


    class Model(nn.Module):
        vocab_size = 16

        def __init__(self, depth: int = 1) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))


    class Mine:
        def __init__(self, depth: int = 1, scale: float = 1.0, name: str = "x", deep: bool = False) -> None:
            self.options = Options(depth)
            self.given = (depth, scale, name, deep)

        def model(self) -> nn.Module:
            model = Model(self.options.depth)
            model.given = self.given
            return model


    def build(depth: int = 1) -> nn.Module:
        return Model(depth)


    instance = Mine(depth=3)
    built = Model()
    number = 3


    def gives_a_number():
        return 3


    def fails():
        raise ZeroDivisionError("by design")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write(tmp_path / "mine.py", SOURCE)
    return tmp_path


def write(path: Path, source: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(source))


def depth(model: nn.Module) -> int:
    return len(list(model.get_submodule("blocks").children()))


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [("Mine", 1), ("Mine?depth=2", 2), ("build?depth=2", 2), ("Model?depth=4", 4), ("instance", 3)],
)
def test_forms_of_a_users_target(folder: Path, attribute: str, expected: int) -> None:
    assert depth(load_target(f"mine.py:{attribute}").model()) == expected


def test_options_become_numbers_and_booleans(folder: Path) -> None:
    model = load_target("mine.py:Mine?depth=2&scale=1e-3&name=a.b&deep=true").model()
    assert model.given == (2, 1e-3, "a.b", True)


def test_a_model_comes_from_the_seed_at_model(folder: Path) -> None:
    torch.manual_seed(5)
    expected = nn.Linear(4, 4).weight
    torch.manual_seed(5)
    target = load_target("mine.py:build")
    assert torch.equal(target.model().get_parameter("blocks.0.weight"), expected)


def test_importing_leaves_the_path_as_it_was(folder: Path) -> None:
    write(folder / "sub" / "helper.py", "DEPTH = 6")
    write(folder / "sub" / "lazy_helper.py", "EXTRA = 1")
    source = """
        from helper import DEPTH
        from torch import nn

        class Mine:
            def model(self):
                from lazy_helper import EXTRA
                model = nn.Module()
                model.vocab_size = 16
                model.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(DEPTH + EXTRA))
                return model
    """
    write(folder / "sub" / "target.py", source)
    before = list(sys.path)
    assert depth(load_target("sub/target.py:Mine").model()) == 7
    assert sys.path == before


def test_classes_of_a_file_can_be_pickled(folder: Path) -> None:
    given = load_target("mine.py:Mine").model()
    assert depth(pickle.loads(pickle.dumps(given))) == 1


def test_a_module_of_the_current_folder(folder: Path) -> None:
    write(folder / "their_package" / "workload.py", SOURCE)
    before = list(sys.path)
    assert depth(load_target("their_package.workload:Mine?depth=2").model()) == 2
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.py:Mne", r"mine\.py has no 'Mne'\. Did you mean Mine\? Classes and functions in it: .*Mine.*build"),
        ("no_such_package:Mine", r"no module 'no_such_package'.*actune targets.*hf:"),
        ("mine.py:built", "a model that is already built"),
        ("mine.py:Mine?depht=2", r"unexpected keyword argument 'depht'\. Mine takes: depth: "),
        ("mine.py:instance?depth=2", r"takes no options\. Remove \?depth=2"),
    ],
)
def test_wrong_names_are_the_users(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_target(text)


def test_a_missing_submodule_of_a_package_is_a_wrong_name(folder: Path) -> None:
    write(folder / "half_package" / "__init__.py", "")
    with pytest.raises(UsageError, match=r"no module 'half_package\.workload'"):
        load_target("half_package.workload:Mine")


def test_a_missing_import_of_the_module_is_the_targets_fault(folder: Path) -> None:
    write(folder / "needs_more.py", "import not_there_at_all")
    for text in ("needs_more:Mine", "needs_more.py:Mine"):
        with pytest.raises(
            TargetError, match="raised ModuleNotFoundError: No module named 'not_there_at_all'"
        ) as caught:
            load_target(text)
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", r"importing bad\.py raised ZeroDivisionError"),
        ("def", r"importing bad\.py raised SyntaxError"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ],
)
def test_what_an_import_raises_is_the_targets_fault(folder: Path, source: str, message: str) -> None:
    write(folder / "bad.py", source)
    registered = set(sys.modules)
    with pytest.raises(TargetError, match=message) as caught:
        load_target("bad.py:Mine")
    assert caught.value.__cause__ is not None
    assert not [name for name in set(sys.modules) - registered if name.startswith("_actune_target_")]


def test_what_a_factory_raises_is_the_targets_fault(folder: Path) -> None:
    with pytest.raises(TargetError, match=r"fails\(\) raised ZeroDivisionError: by design") as caught:
        load_target("mine.py:fails")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("gives_a_number", r"gives_a_number\(\) gave a value of type int, which has no method model\(\)"),
        ("number", r"int has no method model\(\)"),
    ],
)
def test_what_is_no_target(folder: Path, attribute: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(f"mine.py:{attribute}")


def test_the_example_trains_a_step() -> None:
    torch.manual_seed(0)
    target = load_target(f"{EXAMPLE}:MyTarget?layers=2&batch=2&seq=32")
    model = target.model()
    optimizer = target.optimizer(model)
    before = model.get_parameter("blocks.1.attn.qkv.weight").clone()
    loss = target.loss(model, target.batch(0))
    loss.backward()
    optimizer.step()
    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 1
    assert not torch.equal(before, model.get_parameter("blocks.1.attn.qkv.weight"))


def fingerprint(text: str) -> str:
    return source_fingerprint(parse_target_spec(text))


def test_a_fingerprint_is_of_the_content_not_of_the_place(folder: Path) -> None:
    (folder / "moved.py").write_bytes((folder / "mine.py").read_bytes())
    assert fingerprint("mine.py:Mine") == fingerprint("./moved.py:Mine")
    before = fingerprint("mine.py:Mine")
    with (folder / "mine.py").open("a") as file:
        file.write("\n# changed\n")
    assert fingerprint("mine.py:Mine") != before


def test_a_fingerprint_tells_options_and_names_apart(folder: Path) -> None:
    (folder / "other_module.py").write_bytes((folder / "mine.py").read_bytes())
    (folder / "config.json").write_text("{}")
    texts = [
        "mine.py:Mine",
        "mine.py:build",
        "mine.py:Mine?depth=2",
        "mine.py:Mine?depth=3",
        "other_module:Mine",
        "dense-tiny",
        "dense-tiny-12",
        "dense-tiny?layers=12",
        "hf:config.json",
    ]
    assert len({fingerprint(text) for text in texts}) == len(texts)
    assert fingerprint("dense-tiny?layers=2&seq=8") == fingerprint("dense-tiny?seq=8&layers=2")


@pytest.mark.parametrize("module", ["nowhere_at_all", "nowhere_at_all.inner"])
def test_a_fingerprint_needs_the_module(folder: Path, module: str) -> None:
    with pytest.raises(UsageError, match="no module 'nowhere_at_all'"):
        fingerprint(f"{module}:Mine")


def test_a_fingerprint_needs_a_source_file(folder: Path) -> None:
    (folder / "only_a_folder").mkdir()
    with pytest.raises(UsageError, match="has no source file"):
        fingerprint("only_a_folder:Mine")
