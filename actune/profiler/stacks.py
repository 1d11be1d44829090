"""Where a model keeps its repeated layers.

The layers are the elements of the outermost lists of like blocks. What is inside of a layer is not looked at, so a
mixture's list of experts is not taken for layers, however long it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_MOST = 2 / 3


def find_layers(model: nn.Module) -> list[str]:
    """FQNs of the layers of every stack, in the model's order; each module once, also where several lists share it."""
    layers: list[str] = []
    seen: set[int] = set()
    for name, layer in _layers_below(model, ""):
        if id(layer) not in seen:
            seen.add(id(layer))
            layers.append(name)
    return layers


def is_block(module: nn.Module) -> bool:
    """Whether the module can be called and has two or more weight matrices (convolutions and experts count)."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return sum(parameter.ndim >= 2 for parameter in module.parameters()) >= 2


def like_blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The elements of a container that make up a stack, by name; empty if it has none.

    A Sequential may hold other things around its blocks (an embedding, a head): the blocks are those of its elements
    whose type occurs again. In a ModuleList or ModuleDict, which is for what is alike, each element that has weights
    must be a block, and the kinds must repeat: mixed stacks have a few kinds for many layers, whereas a layer's
    [attention, feed-forward], or a model's {embedding, layers, norm}, has a kind for each. Types of which most children
    have the same names are one kind, as a dense layer and a mixture are that differ in their feed-forward alone. A list
    of one is a stack.
    """
    if not isinstance(module, _CONTAINERS):
        return []
    children = [(name, child) for name, child in module.named_children() if next(child.parameters(), None) is not None]
    blocks = [(name, child) for name, child in children if is_block(child)]
    counts = Counter(type(child) for _, child in blocks)
    if isinstance(module, nn.Sequential):
        return [(name, child) for name, child in blocks if counts[type(child)] > 1]
    if len(blocks) < len(children) or (
        len(blocks) > 1 and _count_kinds(block for _, block in blocks) > len(blocks) / 2
    ):
        return []
    return blocks


def _count_kinds(blocks: Iterable[nn.Module]) -> int:
    """How many kinds of blocks there are: one per type, but types with mostly the same children are one kind."""
    children_of_kinds: list[set[str]] = []
    for block in {type(block): block for block in blocks}.values():
        children = {name for name, _ in block.named_children()}
        if not any(2 * len(children & other) > len(children | other) for other in children_of_kinds):
            children_of_kinds.append(children)
    return len(children_of_kinds)


def _layers_below(module: nn.Module, fqn: str) -> list[tuple[str, nn.Module]]:
    prefix = f"{fqn}." if fqn else ""
    blocks = like_blocks(module)
    if blocks and not all(_is_stage(block) for _, block in blocks):
        return [(prefix + name, block) for name, block in blocks]
    found = []
    for name, child in module.named_children():
        found += _layers_below(child, prefix + name)
    return found


def _is_stage(block: nn.Module) -> bool:
    """Whether a block is only a wrapper of a stack of its own, as a stage of Swin or a tower of a two-tower model is.

    Then its inner blocks are complete layers, which norms show, and hold most of its weights: the rest is a change of
    resolution, a quarter of them in Swin. Experts have no norm of their own.
    """
    inner = _layers_below(block, "")
    if len(inner) < 2 or not all(_has_norm(layer) for _, layer in inner):
        return False
    inner_weights = sum(parameter.numel() for _, layer in inner for parameter in layer.parameters())
    return inner_weights >= _MOST * sum(parameter.numel() for parameter in block.parameters())


def _has_norm(module: nn.Module) -> bool:
    return any("norm" in type(child).__name__.lower() for child in module.modules())
