"""Patterns over FQNs of layers: what they select, what they refuse, and the shortest list of them."""

import pytest

from actune.errors import PlanError
from actune.plan import NO_AC, Plan, Rule, Treatment, compress_fqns, compress_fqns_text
from actune.plan.patterns import LayerPattern

ENCODER = [f"encoder.layers.{i}" for i in range(3)]
DECODER = [f"decoder.layers.{i}" for i in range(12)]
LAYERS = [*ENCODER, *DECODER, "decoder.block-a"]


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("decoder.layers.3", ["decoder.layers.3"]),
        ("decoder.layers.1", ["decoder.layers.1"]),  # not 10 and 11
        ("decoder.layers.9-11", DECODER[9:]),
        ("decoder.layers.0-0", DECODER[:1]),
        ("*", LAYERS),
        ("encoder.*", ENCODER),
        ("*.layers.1", ["encoder.layers.1", "decoder.layers.1"]),
        ("*.layers.0-2", [*ENCODER, *DECODER[:3]]),
        ("decoder.layers.1*", ["decoder.layers.1", "decoder.layers.10", "decoder.layers.11"]),
        ("decoder.block-a", ["decoder.block-a"]),
    ],
)
def test_select(text, selected):
    assert LayerPattern(text).select(LAYERS) == selected


@pytest.mark.parametrize("text", ["", ".", "a..b", "a.", ".a", "layers.[0]", "layers.0, layers.1", "layers.0 -3"])
def test_no_pattern(text):
    with pytest.raises(PlanError, match=r"is not a pattern of FQNs.*such as layers\.3, layers\.0-11 or decoder"):
        LayerPattern(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decoder.layers.5-3", r"layers: 'decoder\.layers\.5-3' has the range 5-3, which ends before it begins"),
        (
            "decoder.layers.12",
            r"layers: 'decoder\.layers\.12' matches no layer\. The model has: encoder\.layers\.0-2, dec",
        ),
        (
            "decoder.layers.8-12",
            r"the range 8-12 of 'decoder\.layers\.8-12' reaches outside the model: .* no layer 12\. ",
        ),
        ("layers.0", r"layers: 'layers\.0' matches no layer"),
        ("decoder.layers.7-", r"layers: 'decoder\.layers\.7-' matches no layer"),
    ],
)
def test_outside_of_the_model(text, message):
    with pytest.raises(PlanError, match=message):
        Plan((Rule((text,), NO_AC),)).resolve(LAYERS)


@pytest.mark.parametrize(
    ("fqns", "patterns"),
    [
        ([], ()),
        (LAYERS, ("encoder.layers.0-2", "decoder.layers.0-11", "decoder.block-a")),
        (["a.0", "a.2", "a.3", "a.1"], ("a.0", "a.2-3", "a.1")),
        (["a.07", "a.08"], ("a.07", "a.08")),
        (["0", "1"], ("0-1",)),
        (["a.0.b", "a.1.b"], ("a.0.b", "a.1.b")),
        (["a.0", "b.1"], ("a.0", "b.1")),
    ],
)
def test_compress(fqns, patterns):
    assert compress_fqns(fqns) == patterns
    assert [fqn for text in patterns for fqn in LayerPattern(text).select(fqns)] == fqns


def test_no_layers_in_words():
    assert compress_fqns_text([]) == "no layers"


def test_the_first_rule_holds_and_what_none_matches_is_left_alone():
    full, sac = Treatment("full"), Treatment("selective")
    plan = Plan((Rule(("encoder.layers.1", "decoder.layers.0-1"), full), Rule(("*.layers.0-2",), sac)))
    resolved = plan.resolve(LAYERS)
    assert list(resolved) == LAYERS
    assert [resolved[fqn] for fqn in ENCODER] == [sac, full, sac]
    assert [resolved[fqn] for fqn in DECODER[:4]] == [full, full, sac, NO_AC]
