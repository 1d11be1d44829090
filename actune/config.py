"""YAML files that people write: search spaces and studies. The one home of pyyaml."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from actune import files
from actune.boundary import OutsideModel, check_plain, take_schema, validate
from actune.errors import PlanError, UsageError
from actune.plan import COMPILE_MODES, CompileMode, PolicyName, Treatment
from actune.plan.patterns import LayerPattern
from actune.plan.presets import is_preset
from actune.plan.text import treatment_from_knobs
from actune.records import ModelStructure

MAX_YAML_BYTES = 2**18
MAX_YAML_VALUES = 100_000
MAX_TREATMENTS = 1000
AUTO_SPACE = "auto"
LAYER = "layer"
PARTS = "parts"

_NO_KNOBS = {"policy", "layers", "optional", "each"}


class _MenuTable(OutsideModel):
    policy: PolicyName
    layers: list[str] | None = None
    optional: bool = False
    wrap: str | list[str] | None = None
    save_every_nth_mm: int | None = None
    save_ops: str | list[str] | None = None
    save: list[str] | None = None
    filter_fqns: list[str] | None = None
    filter_by: Literal["shape", "name"] | None = None
    early_stop: bool | None = None
    preserve_rng_state: bool | None = None
    save_routing: bool | None = None
    memory_budget: float | None = None
    each: dict[str, list[Any]] | None = None


class _SpaceFile(OutsideModel):
    description: str = ""
    compile: list[str | bool] | None = None
    segments: int = 3
    presets: list[str] | None = None
    menu: list[_MenuTable]


class StudyFile(OutsideModel):
    """A ready run: what a study YAML sets. What it leaves out is None."""

    target: str | None = None
    budget: str | None = None
    space: str | None = None
    study: str | None = None
    device: str | None = None
    world_size: int | None = None
    nproc_per_node: int | None = None
    trials: int | None = None
    tolerance: str | int | float | None = None
    frontier: bool | None = None
    timeout: str | None = None
    trial_timeout: str | None = None
    workers: int | None = None
    devices: str | None = None
    engine: str | None = None
    address: str | None = None
    sampler: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """One treatment that layers may get.

    Attributes:
        treatment: with `wrap` as given; if `wraps_parts`, its wrap is replaced by each layer class's parts.
        layers: patterns of the layers that it is for.
        wraps_parts: the regions are the large children of the layer, whatever their names.
        optional: it is no error if no layer can take it.
    """

    treatment: Treatment
    layers: tuple[str, ...] = ("*",)
    wraps_parts: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from.

    Attributes:
        name: for people.
        yaml_text: the file's text, which a study keeps.
        compile_modes: what `compile` may be.
        segments: into how many contiguous runs the layers of a class may be cut, each with a treatment of its own.
        presets: the plans that are tried first.
        menu: the treatments.
    """

    name: str
    yaml_text: str = field(repr=False)
    description: str
    compile_modes: tuple[CompileMode, ...]
    segments: int
    presets: tuple[str, ...]
    menu: tuple[MenuEntry, ...]


DEFAULT_PRESETS = (
    "full",
    "none",
    "sac",
    "full-first-75%",
    "full-first-50%",
    "full-every-2",
    "sac-every-1",
    "split",
    "split-full",
)


def parse_space(text: str, *, name: str) -> Space:
    """A search space from YAML.

    Raises:
        UsageError: the text is no space; the message names the key and its value.
    """
    source = f"space '{name}'"
    if len(text) > MAX_YAML_BYTES:
        raise UsageError(f"{source} has {len(text)} characters; at most {MAX_YAML_BYTES} are read.")
    table = _read_yaml(text, source=source)
    take_schema(table, source=source)
    file = validate(_SpaceFile, table, source=source)
    if not 1 <= file.segments <= 32:
        raise UsageError(f"{source}: segments: {file.segments} is out of range. Expected 1 to 32.")
    presets = DEFAULT_PRESETS if file.presets is None else tuple(file.presets)
    for preset in presets:
        if not is_preset(preset):
            raise UsageError(f"{source}: presets: '{preset}' is no preset.")
    if not file.menu:
        raise UsageError(f"{source}: menu: the list is empty. Name at least one policy.")
    menu = [
        entry for number, row in enumerate(file.menu, start=1) for entry in _entries(row, f"{source}: menu {number}")
    ]
    return Space(
        name=name,
        yaml_text=text,
        description=file.description,
        compile_modes=_compile_modes(["off"] if file.compile is None else file.compile, source),
        segments=file.segments,
        presets=presets,
        menu=tuple(dict.fromkeys(menu)),
    )


def _compile_modes(values: list[str | bool], source: str) -> tuple[CompileMode, ...]:
    modes: list[CompileMode] = []
    if not values:
        raise UsageError(f"{source}: compile: the list is empty. Name some of: {', '.join(COMPILE_MODES)}.")
    for value in values:
        # YAML 1.1 reads a bare `off` as false.
        mode = "off" if value is False else value
        if mode not in COMPILE_MODES:
            raise UsageError(
                f"{source}: compile: {value!r} is not known. Expected some of: {', '.join(COMPILE_MODES)}."
            )
        modes.append(mode)
    return tuple(dict.fromkeys(modes))


def _entries(row: _MenuTable, source: str) -> list[MenuEntry]:
    """The row's treatments: one for every combination of the alternatives under `each`."""
    fixed = row.model_dump(exclude=_NO_KNOBS, exclude_none=True)
    combinations = [fixed]
    for knob, values in (row.each or {}).items():
        if knob in _NO_KNOBS:
            raise UsageError(f"{source}: each: '{knob}' is no knob. Write an entry of its own for each of its values.")
        if knob in fixed:
            raise UsageError(f"{source}: '{knob}' stands both in the entry and under each. Keep one.")
        if not values:
            raise UsageError(f"{source}: each: '{knob}' has no values. Name at least one.")
        if len(combinations) * len(values) > MAX_TREATMENTS:
            raise UsageError(f"{source}: each has more than {MAX_TREATMENTS} combinations. Name fewer values.")
        combinations = [combination | {knob: value} for combination in combinations for value in values]
    layers = ("*",) if row.layers is None else tuple(row.layers)
    if not layers:
        raise UsageError(f"{source}: layers: the list is empty. Name at least one pattern, such as layers.0-3.")
    try:
        for pattern in layers:
            LayerPattern(pattern)
        return [_entry(row, knobs, layers, source) for knobs in combinations]
    except PlanError as error:
        raise UsageError(f"{source}: {error}") from None


def _entry(row: _MenuTable, knobs: dict[str, Any], layers: tuple[str, ...], source: str) -> MenuEntry:
    # Values under `each` have not been checked one by one: an entry with just them is checked as a row of its own.
    checked = validate(_MenuTable, {"policy": row.policy, **knobs}, source=source)
    knobs = checked.model_dump(exclude=_NO_KNOBS, exclude_none=True)
    wrap = knobs.pop("wrap", None)
    if isinstance(wrap, str) and wrap not in (LAYER, PARTS):
        raise UsageError(f"{source}: wrap: '{wrap}' is neither {LAYER} nor {PARTS}; name modules as a list.")
    if isinstance(wrap, list):
        knobs["wrap"] = wrap
    treatment = treatment_from_knobs(row.policy, knobs)
    if wrap is not None and not treatment.is_checkpointed:
        raise UsageError(f"{source}: wrap: {wrap} has no effect with policy {row.policy}. Remove it.")
    return MenuEntry(treatment, layers, wraps_parts=wrap == PARTS, optional=row.optional)


class _Loader(yaml.SafeLoader):
    """Reads plain values, and takes no key twice, of which YAML's readers silently keep the last.

    Aliases are counted as what they stand for: a few lines of aliases of aliases can stand for more values than there
    is memory.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values_within: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if is_alias and node not in self._values_within:
            raise yaml.MarkedYAMLError(problem="an alias stands within what it stands for", problem_mark=mark)
        if not is_alias:
            children = [] if isinstance(node, yaml.ScalarNode) else node.value
            if isinstance(node, yaml.MappingNode):
                children = [child for pair in children for child in pair]
            self._values_within[node] = 1 + sum(self._values_within[child] for child in children)
            if self._values_within[node] > MAX_YAML_VALUES:
                raise yaml.MarkedYAMLError(
                    problem=f"more than {MAX_YAML_VALUES} values, aliases being what they stand for", problem_mark=mark
                )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused later, by what reads the keys
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _read_yaml(text: str, *, source: str) -> dict[str, Any]:
    try:
        table = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise UsageError(f"{source} is not YAML: {getattr(error, 'problem', None) or error}{where}.") from None
    except (ValueError, OverflowError, RecursionError) as error:  # a date or a number that is none; lists in lists …
        raise UsageError(f"{source} has a value that can't be read: {error}. Put text in quotes.") from None
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise UsageError(f"{source} is no table of keys. Expected lines such as `key: value`.")
    check_plain(table, source=source)
    return table


def read_text(path: Path, *, what: str) -> str:
    """A small text file's content.

    Raises:
        UsageError: it is not there, not readable, too large, or no UTF-8 text.
    """
    return files.read_text(path, what=what, max_bytes=MAX_YAML_BYTES)


def shipped_spaces() -> dict[str, Path]:
    """The spaces that come with actune, by name."""
    folder = Path(str(importlib.resources.files("actune"))) / "search_spaces"
    if not folder.is_dir():
        folder = Path(__file__).resolve().parent.parent / "search_spaces"  # a checkout keeps them at its top
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_space(name_or_path: str) -> Space:
    """A shipped space by name, or one from a file.

    Raises:
        UsageError: there is none, or it is no space.
    """
    shipped = shipped_spaces()
    path = shipped.get(name_or_path)
    if path is None:
        path = Path(name_or_path)
        if not os.path.exists(path):  # unlike Path's, it takes names that can't be a file's
            raise UsageError(
                f"space '{name_or_path}' is neither a file nor one that comes with actune: {', '.join(shipped)}."
            )
    return parse_space(read_text(path, what="space"), name=name_or_path)


def space_for(structure: ModelStructure) -> str:
    """The shipped space for a model: `moe` if a layer has experts or a router, else `dense`."""
    modules = (fqn for layer_class in structure.classes for fqn in layer_class.module_fqns)
    return "moe" if any("expert" in fqn or "router" in fqn for fqn in modules) else "dense"


def load_study_file(path: Path) -> StudyFile:
    """A study YAML.

    Raises:
        UsageError: the file can't be read, or is no study.
    """
    source = f"study file {path}"
    table = _read_yaml(read_text(path, what="study file"), source=source)
    take_schema(table, source=source)
    return validate(StudyFile, table, source=source)
