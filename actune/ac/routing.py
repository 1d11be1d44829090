"""Mixtures of experts: a recomputation must send each token to the experts that its forward chose.

Where a region is recomputed, router logits that come out otherwise in a last bit may choose other experts: backward
then fails over shapes, or silently differentiates another function (torchtitan #1117). So what chooses is kept
under full AC and SAC: outputs of `topk` and the like, and of the routers' own matmuls, which are small. torchtitan
keeps `topk` since #3146.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from actune.plan import WHOLE_LAYER

_EXPERTS = re.compile(r"expert", re.IGNORECASE)
_ROUTERS = frozenset({"gate", "gating", "router", "wg"})


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a region routes tokens to experts, as FQNs below the region, `.` for the region itself.

    Attributes:
        scopes: modules in whose own code experts are chosen.
        experts: modules inside of them that choose nothing: the experts themselves, shared ones included.
        routers: modules whose matmuls make the scores that are chosen by.
    """

    scopes: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.scopes)


NO_ROUTING = Routing()


def find_routing(layer: nn.Module, below: str = WHOLE_LAYER) -> Routing:
    """How the region `below` a layer routes: by the names that mixtures have in torchtitan and transformers.

    A mixture is a module with a child that has "expert" in its name; its router is one named gate, gating, router or
    wg in it. What other names hide is not found: then `full` recomputes the choice as any other op.
    """
    names = {fqn: module for fqn, module in layer.named_modules() if fqn}
    experts = _outermost([fqn for fqn in names if _EXPERTS.search(_last(fqn))])
    mixtures = list(dict.fromkeys(_parent(fqn) for fqn in experts))
    routers = _outermost(
        [
            fqn
            for fqn in names
            if _last(fqn) in _ROUTERS and any(_is_inside(fqn, m) for m in mixtures) and not _inside_any(fqn, experts)
        ]
    )
    # A layer that is itself the mixture has attention in its code too, and a list of modules has no code: there only
    # the routers are looked at.
    scopes = [m for m in mixtures if m and not isinstance(names[m], nn.ModuleList | nn.ModuleDict)]
    region = "" if below == WHOLE_LAYER else below
    in_region = [scope for scope in scopes if _is_inside(scope, region)]
    in_region += [r for r in routers if _is_inside(r, region) and not _inside_any(r, in_region)]
    if not in_region and _inside_any(region, routers):
        return Routing((WHOLE_LAYER,), (), (WHOLE_LAYER,))
    return Routing(
        _relative(in_region, region),
        _relative([c for fqn in experts if _inside_any(fqn, in_region) for c in _callable(fqn, names[fqn])], region),
        _relative([router for router in routers if _inside_any(router, in_region)], region),
    )


def _last(fqn: str) -> str:
    return fqn.rpartition(".")[2]


def _parent(fqn: str) -> str:
    return fqn.rpartition(".")[0]


def _is_inside(fqn: str, outer: str) -> bool:
    return not outer or fqn == outer or fqn.startswith(f"{outer}.")


def _inside_any(fqn: str, outer: list[str]) -> bool:
    return any(_is_inside(fqn, one) for one in outer if one)


def _outermost(fqns: list[str]) -> list[str]:
    return [fqn for fqn in fqns if not any(fqn.startswith(f"{other}.") for other in fqns)]


def _callable(fqn: str, module: nn.Module) -> list[str]:
    """A list of experts is never called itself; its elements are."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [inner for name, child in module.named_children() for inner in _callable(f"{fqn}.{name}", child)]
    return [fqn]


def _relative(fqns: list[str], region: str) -> tuple[str, ...]:
    return tuple(fqn[len(region) :].lstrip(".") or WHOLE_LAYER for fqn in fqns)
