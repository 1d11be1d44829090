"""Whether a recomputation chooses other experts than its forward did, and where."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from actune.ac.ops import CHOOSING_OPS, Op
from actune.ac.routing import find_routing
from actune.measure.workload import Workload
from actune.plan import WHOLE_LAYER, Plan

_SHOWN = 3


def describe_rerouting(workload: Workload, plan: Plan) -> str | None:
    """One line on the mixtures that choose otherwise when they are recomputed under a plan; None if none does.

    Args:
        workload: its parameters, seed and batch are put back to their start.
        plan: one whose ops run one by one, so that they can be watched.
    """
    workload.restart()
    try:
        with workload.under(plan), ChoiceWatch(workload.model, workload.structure.layer_fqns) as watch:
            workload.forward_backward(0)
    finally:
        workload.restart()
    rerouted = watch.rerouted()
    if not rerouted:
        return None
    shown = ", ".join(f"{fqn} ({rows} of {total} choices)" for fqn, (rows, total) in list(rerouted.items())[:_SHOWN])
    more = f" and {len(rerouted) - _SHOWN} more" if len(rerouted) > _SHOWN else ""
    return (
        f"recomputation routes tokens to other experts than the forward did, in {shown}{more}. Leave save_routing = "
        "true, or look for what changes between two calls of the router."
    )


class ChoiceWatch(TorchDispatchMode):
    """Notes what mixtures choose, in forward and in recomputation. A choice that is recalled is not made again."""

    def __init__(self, model: nn.Module, layer_fqns: tuple[str, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scopes: dict[str, nn.Module] = {}  # each module once, by its first name
        for fqn in layer_fqns:
            layer = model.get_submodule(fqn)
            for below in find_routing(layer).scopes:
                name, module = (fqn, layer) if below == WHOLE_LAYER else (f"{fqn}.{below}", layer.get_submodule(below))
                if module not in self._scopes.values():
                    self._scopes[name] = module
        self._running: list[str] = []
        self._calls: Counter[str] = Counter()
        self._chosen: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._chosen_again: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for fqn, module in self._scopes.items():
            before = module.register_forward_pre_hook(partial(self._begin, fqn))
            after = module.register_forward_hook(self._end, always_call=True)
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(self, op: Op, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the op."""
        output = op(*args, **(kwargs or {}))
        if self._running and op in CHOOSING_OPS:
            in_backward = torch._C._current_graph_task_id() != -1
            indices = [x for x in tree_iter(output) if isinstance(x, Tensor) and not x.is_floating_point()]
            (self._chosen_again if in_backward else self._chosen)[self._running[-1]] += [x.clone() for x in indices]
        return output

    def rerouted(self) -> dict[str, tuple[int, int]]:
        """By FQN of the mixture: how many rows of indices came out otherwise, and of how many. Only where some did."""
        found = {}
        for fqn, chosen_first in self._chosen.items():
            again = self._chosen_again[fqn]
            if self._calls[fqn] > 2:
                continue  # shared between layers: which recomputation belongs to which call is not known
            pairs = list(zip(chosen_first, again, strict=False))
            differing = sum(_differing_rows(chosen, anew) for chosen, anew in pairs)
            if differing:
                found[fqn] = (differing, sum(chosen.shape[0] for chosen, _ in pairs))
        return found

    def _begin(self, fqn: str, module: nn.Module, args: Any) -> None:
        self._running.append(fqn)
        self._calls[fqn] += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()


def _differing_rows(chosen: Tensor, anew: Tensor) -> int:
    if chosen.shape != anew.shape:
        return chosen.shape[0]
    return int((chosen != anew).reshape(chosen.shape[0], -1).any(dim=1).sum())
