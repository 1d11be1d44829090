"""Structures and plans that the tests of export share."""

from torch import nn

from actune.plan import Plan, Rule, Treatment
from actune.records import LayerClass, ModelStructure


def structure_of(*layer_fqns: str) -> ModelStructure:
    one_class = LayerClass("Block", layer_fqns, ("attention", "feed_forward"), ("attention",), ("attention",))
    return ModelStructure(layer_fqns, (one_class,))


SIX_LAYERS = structure_of(*(f"layers.{index}" for index in range(6)))


def plan_of(*rules: tuple[str, Treatment], compile: str = "off", **provenance: str) -> Plan:
    return Plan(tuple(Rule((layers,), given) for layers, given in rules), compile, provenance)  # type: ignore[arg-type]


MIXED = plan_of(("layers.0-1", Treatment("full")), ("layers.3", Treatment("selective", wrap=("attention",))))


def stack_of(indices: range, *, stage: bool = False) -> nn.Module:
    """A model with the stack `layers`; a pipeline stage has None where its siblings have the embedding."""
    model = nn.Module()
    model.tok_embeddings = nn.Identity()
    if stage:
        model.tok_embeddings = None
    layers = {str(index): nn.ModuleDict({"attention": nn.Identity()}) for index in indices}
    model.layers = nn.ModuleDict(layers)
    return model
