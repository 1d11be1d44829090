from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from actune.errors import TargetError
from actune.profiler import discover, structure_fingerprint
from actune.targets import load_target

WIDTH = 8


class Attention(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)


class FeedForward(nn.Module):
    def __init__(self, width: int = WIDTH, hidden: int = 2 * WIDTH) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, hidden: int = 2 * WIDTH, **settings: Any) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.feed_forward = FeedForward(width, hidden)
        self.norm = nn.LayerNorm(width)
        for name, value in settings.items():
            setattr(self, name, value)


class ExpertsBlock(nn.Module):
    """A layer with a list of experts that is longer than any stack of layers."""

    def __init__(self, experts: int = 16) -> None:
        super().__init__()
        self.attention = Attention()
        self.experts = nn.ModuleList(FeedForward() for _ in range(experts))
        self.gate = nn.Linear(WIDTH, experts)
        self.norm = nn.LayerNorm(WIDTH)


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = FeedForward()
        self.norm = nn.LayerNorm(WIDTH)


class ListOfHalves(nn.Module):
    """T5's way: attention and feed-forward as two elements of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Attention(), FeedForward()])


class Stage(nn.Module):
    """Swin's way: a stack inside each element of a list."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))


class Weights(nn.Module):
    """A block without submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(2, 4))
        self.down = nn.Parameter(torch.zeros(4, 2))


def model(**children: nn.Module) -> nn.Module:
    return nn.ModuleDict(
        {"embedding": nn.Embedding(16, WIDTH), **children, "norm": nn.LayerNorm(WIDTH), "head": nn.Linear(WIDTH, 16)}
    )


def blocks(count: int) -> nn.ModuleList:
    return nn.ModuleList(Block() for _ in range(count))


def fqns(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{i}" for i in range(count))


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (model(layers=blocks(3)), fqns("layers", 3)),
        (model(layers=blocks(1)), fqns("layers", 1)),
        (model(layers=nn.ModuleDict({"a": Block(), "b": Block()})), ("layers.a", "layers.b")),
        (model(layers=nn.Sequential(*blocks(2))), fqns("layers", 2)),
        (model(layers=nn.ModuleList(Weights() for _ in range(3))), fqns("layers", 3)),
        (nn.Sequential(nn.Embedding(16, 8), *blocks(3), nn.Linear(8, 16)), ("1", "2", "3")),
        (model(encoder=model(layers=blocks(2)), decoder=model(layers=blocks(3))),
         (*fqns("encoder.layers", 2), *fqns("decoder.layers", 3))),
        (model(towers=nn.ModuleList([Stage(2), Stage(3)])), (*fqns("towers.0.blocks", 2), *fqns("towers.1.blocks", 3))),
        (nn.Sequential(OrderedDict(stem=nn.Linear(8, 8), one=nn.Sequential(*blocks(2)), two=nn.Sequential(*blocks(2)))),
         (*fqns("one", 2), *fqns("two", 2))),
        (model(layers=nn.ModuleList(ExpertsBlock() for _ in range(2))), fqns("layers", 2)),
        (model(layers=nn.ModuleList([Block(), *(ExpertsBlock() for _ in range(3))])), fqns("layers", 4)),
        (model(layers=nn.ModuleList(ListOfHalves() for _ in range(3))), fqns("layers", 3)),
        (model(layers=blocks(3), heads=nn.ModuleList(nn.Linear(8, 2) for _ in range(9))), fqns("layers", 3)),
    ],
    ids=[
        "list", "list of one", "dict", "sequential", "own parameters", "sequential with stem and head",
        "encoder and decoder", "stages", "sequential stages", "experts", "dense and experts", "halves", "heads",
    ],
)  # fmt: skip
def test_layers_are_found(built: nn.Module, expected: tuple[str, ...]) -> None:
    structure = discover(built)
    assert structure.layer_fqns == expected
    assert sorted(fqn for layer_class in structure.classes for fqn in layer_class.layer_fqns) == sorted(expected)


def test_a_shared_layer_is_one_layer() -> None:
    shared = Block()
    built = model(encoder=nn.ModuleList([shared, Block(), shared]), decoder=nn.ModuleList([Block(), shared]))
    assert discover(built).layer_fqns == ("encoder.0", "encoder.1", "decoder.0")


@pytest.mark.parametrize(
    "built",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        nn.ModuleDict({"one": Attention(), "two": FeedForward()}),
    ],
)
def test_no_layers(built: nn.Module) -> None:
    with pytest.raises(
        TargetError, match=r"Looked for a ModuleList.*name them in the target: layers = .*(children|no sub)"
    ):
        discover(built)


def names(built: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    return [(layer_class.name, layer_class.layer_fqns) for layer_class in discover(built).classes]


def test_layers_of_the_same_structure_are_one_class() -> None:
    layers = [Block(), Block(hidden=4), Block(), ExpertsBlock(), Block(hidden=4), ExpertsBlock(experts=3)]
    assert names(model(layers=nn.ModuleList(layers))) == [
        ("Block", ("layers.0", "layers.2")),
        ("Block#2", ("layers.1", "layers.4")),
        ("ExpertsBlock", ("layers.3",)),
        ("ExpertsBlock#2", ("layers.5",)),
    ]


def test_dtype_and_training_of_weights_tell_classes_apart() -> None:
    built = model(layers=nn.ModuleList([Block(), Block().to(torch.bfloat16), Block().requires_grad_(False), Block()]))
    assert [layers for _, layers in names(built)] == [("layers.0", "layers.3"), ("layers.1",), ("layers.2",)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"sliding_window": None}, {"sliding_window": 128}, False),
        ({"attention_type": "full"}, {"attention_type": "sliding"}, False),
        ({"is_causal": True}, {"is_causal": False}, False),
        ({"layer_idx": 0}, {"layer_idx": 1}, True),
        ({"label": "layer 3"}, {"label": "layer 12"}, True),
        ({"init_std": 0.02}, {"init_std": 0.01}, True),
    ],
)
def test_settings_that_choose_another_way_tell_classes_apart(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    built = model(layers=nn.ModuleList([Block(**one), Block(**other), Block(**one)]))
    assert len(discover(built).classes) == (1 if same else 2)


def test_types_of_the_same_name_are_told_apart() -> None:
    other = type("Block", (Block,), {})
    assert [name for name, _ in names(model(layers=nn.ModuleList([Block(), other(), Block(), other()])))] == [
        "Block",
        "Block#2",
    ]


def test_a_class_names_what_is_in_a_layer() -> None:
    (layer_class,) = discover(model(layers=blocks(2))).classes
    assert layer_class.parts == ("attention", "feed_forward")
    assert layer_class.module_fqns == (
        "attention",
        "attention.qkv",
        "attention.out",
        "feed_forward",
        "feed_forward.up",
        "feed_forward.down",
        "norm",
    )
    assert layer_class.linear_fqns == ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        (ListOfHalves, ("layer.0", "layer.1")),
        (ExpertsBlock, ()),  # attention alone is no split
        (MixerBlock, ()),
        (Weights, ()),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), ()),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16), ("self_attn", "multihead_attn")),
    ],
)
def test_parts(layer: Any, parts: tuple[str, ...]) -> None:
    (layer_class,) = discover(model(layers=nn.ModuleList(layer() for _ in range(2)))).classes
    assert layer_class.parts == parts


def test_parts_of_the_built_in_targets() -> None:
    assert [c.parts for c in discover(load_target("moe-tiny").model()).classes] == [
        ("attention", "feed_forward"),
        ("attention", "moe"),
    ]


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        built = load_target("dense-tiny?layers=3").model()
    assert discover(built).layer_fqns == fqns("layers", 3)


def test_named_layers_keep_the_models_order() -> None:
    built = nn.Sequential(OrderedDict(first=Block(), second=MixerBlock(), third=Block()))
    structure = discover(built, ["third", "first"])
    assert structure.layer_fqns == ("first", "third")
    assert [c.layer_fqns for c in structure.classes] == [("first", "third")]


@pytest.mark.parametrize(
    ("layer_fqns", "message"),
    [
        (["layers.0", "layer.1"], r"no module 'layer\.1'\. Did you mean layers\.1"),
        (["zzz"], r"no module 'zzz'\. The model's children: embedding \(Embedding\), layers"),
        ([""], "no module ''"),
        (["layers"], r"'layers' is a ModuleList, .*Name its elements: layers\.0, layers\.1"),
        (["layers.0", "layers.0.attention"], r"'layers\.0\.attention' lies inside 'layers\.0'"),
        (["layers.0", "layers.0"], r"'layers\.0' stands twice"),
    ],
)
def test_named_layers_that_do_not_fit(layer_fqns: list[str], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        discover(model(layers=blocks(3)), layer_fqns)


def test_structure_fingerprint() -> None:
    same = [structure_fingerprint(model(layers=blocks(2))) for _ in range(2)]
    others = [
        structure_fingerprint(built)
        for built in (
            model(layers=blocks(3)),
            model(blocks=blocks(2)),
            model(layers=nn.ModuleList([Block(), Block(hidden=4)])),
            model(layers=blocks(2)).to(torch.bfloat16),
            model(layers=nn.Sequential(*blocks(2))),
        )
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 6


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_short_mixture_whose_first_layer_is_dense(layers: int) -> None:
    model = load_target(f"moe-tiny?layers={layers}").model()
    assert discover(model).layer_fqns == tuple(f"layers.{number}" for number in range(layers))
