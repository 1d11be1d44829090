"""Presets: the plans that they stand for."""

import pytest

from actune.errors import UsageError
from actune.plan import Plan, Rule, Treatment
from actune.plan.presets import PRESETS, is_preset, preset_plan
from actune.records import LayerClass, ModelStructure

LAYERS = tuple(f"layers.{i}" for i in range(6))
STRUCTURE = ModelStructure(
    LAYERS,
    (
        LayerClass("Block", LAYERS[:2], ("attention", "feed_forward"), (), ()),
        LayerClass("MoEBlock", LAYERS[2:5], ("attention", "moe"), (), ()),
        LayerClass("Mixer", LAYERS[5:], (), (), ()),
    ),
)


def one(layers, policy, **knobs):
    return Plan((Rule((layers,), Treatment(policy, **knobs)),))


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("none", Plan()),
        ("full", one("layers.0-5", "full")),
        ("sac", one("layers.0-5", "selective")),
        ("sac-every-1", one("layers.0-5", "selective", save_every_nth_mm=1)),
        ("sac-every-3", one("layers.0-5", "selective", save_every_nth_mm=3)),
        ("full-every-1", one("layers.0-5", "full")),
        ("full-every-2", Plan((Rule(("layers.1", "layers.3", "layers.5"), Treatment("full")),))),
        ("full-every-4", one("layers.3", "full")),
        ("full-every-7", Plan()),
        ("full-first-50%", one("layers.0-2", "full")),
        ("full-first-99%", one("layers.0-5", "full")),
        ("full-first-1%", Plan()),
    ],
)
def test_preset(name, plan):
    assert is_preset(name)
    assert preset_plan(name, STRUCTURE) == plan


@pytest.mark.parametrize(("name", "policy"), [("split", "selective"), ("split-full", "full")])
def test_split_wraps_parts_where_a_layer_has_them(name, policy):
    resolved = preset_plan(name, STRUCTURE).resolve(LAYERS)
    wraps = [resolved[fqn].wrap for fqn in LAYERS]
    assert wraps == [("attention", "feed_forward")] * 2 + [("attention", "moe")] * 3 + [(".",)]
    assert {treatment.policy for treatment in resolved.values()} == {policy}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fast",
        "full-every-N",
        "sac-every-0",
        "full-every-",
        "full-every-2x",
        "split-2",
        "full-first-100%",
        "full-first-P%",
    ],
)
def test_no_preset(name):
    assert not is_preset(name)
    with pytest.raises(UsageError, match=rf"'{name}' is no preset\. Presets: none, full, full-every-N, .* such as 2"):
        preset_plan(name, STRUCTURE)


def test_presets_are_canonical():
    for name in PRESETS:
        plan = preset_plan(name.replace("-N", "-2").replace("P%", "50%"), STRUCTURE)
        assert plan.canonical_for(LAYERS) == plan
