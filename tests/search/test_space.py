"""A search space on a model: parameters to plans and back."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import pytest

from actune.config import load_space, parse_space, shipped_spaces
from actune.errors import UsageError
from actune.plan import Plan, Treatment, dump_plan, parse_plan
from actune.plan.presets import PRESETS, preset_plan
from actune.records import LayerClass, ModelStructure
from actune.search.space import ModelSpace

from .fakes import dense, mixture

TWO_STACKS = ModelStructure(
    ("encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2"),
    (
        LayerClass("Encoder", ("encoder.0", "encoder.1"), ("attention",), ("attention",), ("attention",)),
        LayerClass("Decoder", ("decoder.0", "decoder.1", "decoder.2"), (), ("norm",), ()),
    ),
)
STRUCTURES = {"dense": dense(7), "one": dense(1), "moe": mixture(5), "two": TWO_STACKS}
BY_LAYERS = """
schema: 1
compile: [layer, model]
segments: 2
presets: []
menu:
  - policy: none
  - policy: full
    layers: [layers.0-2]
  - policy: memory_budget
    each: {memory_budget: [0.25, 0.5]}
"""


def space_of(menu: str, structure: ModelStructure, *, head: str = "segments: 3") -> ModelSpace:
    return ModelSpace(parse_space(f"schema: 1\npresets: []\n{head}\nmenu:\n{menu}", name="test"), structure)


@pytest.mark.parametrize(
    ("name", "structure"),
    [*itertools.product(shipped_spaces(), STRUCTURES), *itertools.product(["by layers"], ["dense", "one", "moe"])],
)
def test_random_values_decode_encode_and_decode_to_the_same_plan(name: str, structure: str) -> None:
    model = STRUCTURES[structure]
    space = ModelSpace(parse_space(BY_LAYERS, name=name) if name == "by layers" else load_space(name), model)
    rng = random.Random(0)
    for _ in range(150):
        values = space.random_values(rng)
        plan = space.decode(values)
        encoded = space.encode(plan)
        assert encoded is not None
        assert encoded.keys() == values.keys()
        assert space.decode(encoded) == plan
        assert plan.canonical_for(model.layer_fqns) == plan
        assert parse_plan(dump_plan(plan)) == plan


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", shipped_spaces())
def test_every_parameter_has_the_same_choices_in_every_trial(name: str, structure: str) -> None:
    # Optuna refuses a parameter whose categories change.
    space = ModelSpace(load_space(name), STRUCTURES[structure])
    rng = random.Random(1)
    seen: dict[str, set[Any]] = defaultdict(set)
    for _ in range(150):
        for choice in space.choices(space.random_values(rng)):
            seen[choice.name].add((choice.labels, choice.high))
    assert all(len(choices) == 1 for choices in seen.values())
    assert all(labels is None or labels for choices in seen.values() for labels, _ in choices)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_number_of_parameters_does_not_grow_with_the_layers(structure: str) -> None:
    space = ModelSpace(load_space("dense"), dense(126))
    assert len(space.choices({})) == 5
    model = STRUCTURES[structure]
    assert len(ModelSpace(load_space("dense"), model).choices({})) <= 5 * len(model.classes)


@pytest.mark.parametrize("name", ["dense", "moe"])
@pytest.mark.parametrize("structure", ["dense", "moe"])
def test_presets_that_the_space_can_say_encode_to_themselves(name: str, structure: str) -> None:
    model = STRUCTURES[structure]
    space = ModelSpace(load_space(name), model)
    representable = ["none", "full", "sac", "sac-every-1", "sac-every-3", "split", "split-full", "full-first-50%"]
    for preset in representable:
        plan = preset_plan(preset, model)
        encoded = space.encode(plan)
        assert encoded is not None, preset
        assert space.decode(encoded) == plan, preset


def test_plans_outside_of_the_space_do_not_encode() -> None:
    space = ModelSpace(load_space("dense"), dense(7))
    assert space.encode(preset_plan("full-every-2", dense(7))) is None  # more runs than segments
    assert space.encode(preset_plan("sac-every-5", dense(7))) is None  # not in the menu
    assert space.encode(Plan(compile="layer")) is None


def test_all_presets_are_plans_of_the_space_whether_it_can_say_them_or_not() -> None:
    space = ModelSpace(load_space("dense"), dense(8))
    assert list(space.presets) == list(load_space("dense").presets)
    assert set(space.presets) & set(PRESETS) == {"none", "full", "sac", "split", "split-full"}
    assert all(plan == preset_plan(name, dense(8)) for name, plan in space.presets.items())


def test_cuts_make_contiguous_segments_in_whatever_order_they_stand() -> None:
    space = space_of("  - policy: none\n  - policy: full\n  - policy: selective\n", dense(6))
    values = {"Block.segment1": "full", "Block.segment2": "none", "Block.segment3": "selective"}
    expected = ["full", "full", "none", "none", "none", "selective"]
    for cuts in ((2, 5), (5, 2)):
        plan = space.decode(values | {"Block.cut1": cuts[0], "Block.cut2": cuts[1]})
        assert [t.policy for t in plan.resolve(dense(6).layer_fqns).values()] == expected


def test_empty_segments_and_the_whole_stack_in_one() -> None:
    space = space_of("  - policy: none\n  - policy: full\n  - policy: selective\n", dense(6))
    values = {"Block.segment1": "none", "Block.segment2": "full", "Block.segment3": "selective"}
    assert space.decode(values | {"Block.cut1": 0, "Block.cut2": 6}) == preset_plan("full", dense(6))
    assert space.decode(values | {"Block.cut1": 0, "Block.cut2": 0}) == preset_plan("sac", dense(6))
    assert space.decode(values | {"Block.cut1": 6, "Block.cut2": 6}) == Plan()


def test_no_more_segments_than_layers() -> None:
    space = space_of("  - policy: none\n  - policy: full\n", dense(2), head="segments: 9")
    assert [choice.name for choice in space.choices({})] == ["Block.cut1", "Block.segment1", "Block.segment2"]


def test_every_plan_of_a_small_space_is_drawn() -> None:
    space = space_of("  - policy: none\n  - policy: full\n", dense(3), head="segments: 3")
    rng = random.Random(0)
    assert len({space.decode(space.random_values(rng)) for _ in range(400)}) == 2**3


def test_menus_leave_out_what_a_compile_mode_can_not_do() -> None:
    space = ModelSpace(load_space("everything"), dense(4))
    (group,) = space.groups
    policies = {mode: {t.policy for t in group.menu_under(mode).values()} for mode in space.compile_modes}
    assert policies == {
        "off": {"none", "full", "selective"},
        "inside": {"none", "full"},
        "layer": {"none", "full", "selective", "memory_budget"},
        "model": {"none", "full", "selective", "memory_budget"},
    }


def test_whole_model_has_one_memory_budget_and_each_one_of_the_menu_can_be_it() -> None:
    space = ModelSpace(parse_space(BY_LAYERS, name="by layers"), dense(5))
    rng = random.Random(0)
    shares = {"layer": set(), "model": set()}  # type: ignore[var-annotated]
    for _ in range(300):
        plan = space.decode(space.random_values(rng))
        treatments = plan.resolve(dense(5).layer_fqns).values()
        shares[plan.compile].add(frozenset(t.memory_budget for t in treatments if t.memory_budget is not None))
    none, quarter, half = frozenset(), frozenset({0.25}), frozenset({0.5})
    assert shares["model"] == {none, quarter, half}
    assert shares["layer"] == {none, quarter, half, quarter | half}


def test_mode_that_leaves_a_layer_nothing_is_an_error() -> None:
    menu = "  - policy: full\n    layers: [layers.0]\n  - policy: memory_budget\n    memory_budget: 0.5\n"
    with pytest.raises(UsageError, match=r"nothing for layers\.1-3 under compile = off, only memory_budget"):
        space_of(menu, dense(4), head="compile: ['off', layer]")


def test_layers_with_other_menus_are_groups_of_their_own() -> None:
    menu = "  - policy: none\n  - policy: full\n    layers: [layers.0, layers.4-9]\n"
    space = space_of(menu, dense(6))
    assert [(group.name, group.layer_fqns) for group in space.groups] == [
        ("Block.1", ("layers.0", "layers.4", "layers.5")),
        ("Block.2", ("layers.1", "layers.2", "layers.3")),
    ]
    rng = random.Random(0)
    for _ in range(50):
        treatments = space.decode(space.random_values(rng)).resolve(dense(6).layer_fqns)
        assert all(treatments[f"layers.{n}"].policy == "none" for n in (1, 2, 3))


def test_layers_that_no_entry_is_for_are_left_alone() -> None:
    space = space_of("  - policy: full\n    layers: ['encoder.*']\n", TWO_STACKS)
    assert [list(group.menu) for group in space.groups] == [["full"], ["none"]]
    plan = space.decode(space.random_values(random.Random(0)))
    assert [t.policy for t in plan.resolve(TWO_STACKS.layer_fqns).values()] == ["full"] * 2 + ["none"] * 3


def test_parts_are_those_of_each_layer_class() -> None:
    space = space_of("  - policy: none\n  - policy: full\n    wrap: parts\n", mixture(3))
    assert [[t.wrap for t in group.menu.values() if t.policy == "full"] for group in space.groups] == [
        [("attention", "feed_forward")],
        [("attention", "moe")],
    ]


def test_parts_are_nothing_for_layers_without_any() -> None:
    space = space_of("  - policy: none\n  - policy: full\n    wrap: parts\n", TWO_STACKS)
    assert [list(group.menu) for group in space.groups] == [["none", "full wrap=attention"], ["none"]]


@pytest.mark.parametrize(
    ("menu", "message"),
    [
        (
            "  - policy: full\n    layers: [blocks.*]\n",
            r"'full' for blocks\.\* fits no layer .* layers\.0-3\. .*optional",
        ),
        ("  - policy: full\n    wrap: [moe]\n", r"'full wrap=moe' for \* fits no layer"),
        ("  - policy: selective\n    filter_fqns: [router.gate]\n", r"filter_fqns=router\.gate' .*fits no layer"),
        ("  - policy: selective\n    filter_fqns: [feed_forward]\n", r"filter_fqns=feed_forward' .*fits no layer"),
    ],
)
def test_entry_that_fits_no_layer_is_an_error_unless_optional(menu: str, message: str) -> None:
    menu = "  - policy: none\n" + menu
    with pytest.raises(UsageError, match=message):
        space_of(menu, dense(4))
    (group,) = space_of(menu + "    optional: true\n", dense(4)).groups
    assert list(group.menu) == ["none"]


def test_filters_fit_layers_where_they_name_linears() -> None:
    space = space_of("  - policy: none\n  - policy: selective\n    filter_fqns: [router.gate]\n", mixture(3))
    assert [len(group.menu) for group in space.groups] == [1, 2]


def test_entries_that_do_the_same_are_one() -> None:
    menu = "  - policy: selective\n    each: {save_ops: [[default, grouped_mm], [grouped_mm, default]]}\n"
    (group,) = space_of(menu, dense(4)).groups
    assert list(group.menu.values()) == [Treatment("selective", save_ops=("default", "grouped_mm"))]


def test_a_mode_has_the_treatments_that_a_plan_may_have_with_it() -> None:
    menu = """
  - policy: full
  - policy: selective
    each: {save_ops: [default, topk]}
  - policy: selective
    filter_fqns: [router.gate]
    optional: true
  - policy: memory_budget
    memory_budget: 0.5
"""
    head = "segments: 1\ncompile: ['off', 'off+ops', inside, 'inside+ops', layer]"
    space = space_of(menu, mixture(3), head=head)
    group = next(group for group in space.groups if len(group.menu) == 5)
    found = {mode: len(group.menu_under(mode)) for mode in space.compile_modes}
    # What is compiled inside is one op: no Linear in it can be filtered.
    assert found == {"off": 4, "off+ops": 4, "inside": 1, "inside+ops": 3, "layer": 5}
