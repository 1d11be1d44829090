"""Fully sharded data parallelism (FSDP2) as one of its ranks sees it: bytes and communication, without the others.

The rules are those of PyTorch's `torch.distributed.fsdp.fully_shard`, applied to each layer and then to the model, in
its documentation (docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) and the FSDP notes: parameters,
gradients and optimizer state are sharded evenly; a layer's parameters are gathered before its forward and again before
its backward, the next layer's while it runs, and are freed after each (reshard_after_forward); those of no layer are
the root's, which stays gathered from its forward to the end of the backward; a layer's gradients are reduced and
sharded when its backward ends. Left out: the buffers that collectives copy through, mixed precision, latency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._pytree import tree_iter

from actune.device_spec import SimulatedDevice
from actune.measure.simulated.tracker import PICOSECONDS, StorageTracker


@dataclass(eq=False)
class _Group:
    """Parameters that are gathered together.

    Attributes:
        number: on the tracker's tape, of what they take while they are gathered; None while they are not.
        started_ps: when the forward or backward began that runs now.
        communication_ps: of what has to be done beside it.
    """

    parameters: tuple[nn.Parameter, ...]
    whole_bytes: int
    number: int | None = None
    started_ps: int = 0
    communication_ps: int = 0


@dataclass
class _Step:
    """Where a step is.

    Attributes:
        is_backward: a layer's backward has begun.
        order: groups of layers in the order of their calls in the forward.
        running: the group whose backward runs.
    """

    is_backward: bool = False
    order: list[_Group] = field(default_factory=list)
    running: _Group | None = None


class Sharding:
    """One rank of `world_size`."""

    def __init__(self, spec: SimulatedDevice, tracker: StorageTracker, world_size: int) -> None:
        self._tracker = tracker
        self._world_size = world_size
        self._bytes_per_s = spec.interconnect_bytes_per_s
        if world_size > spec.devices_per_node:
            self._bytes_per_s = spec.network_bytes_per_s
        self._layers: list[_Group] = []
        self._root = _Group((), 0)
        self._step = _Step()

    def shard(self, model: nn.Module, layer_fqns: Sequence[str]) -> None:
        """Makes the groups, and holds of each parameter this rank's share."""
        shared = _count_of_layers(model, layer_fqns)
        modules = [model.get_submodule(fqn) for fqn in layer_fqns]
        for module in modules:
            parameters = tuple(p for p in module.parameters() if shared[p] == 1)
            self._layers.append(_Group(parameters, _bytes_of(parameters)))
        rest = tuple(p for p in model.parameters() if shared.get(p, 0) != 1)
        self._root = _Group(rest, _bytes_of(rest))
        for parameter in model.parameters():
            self._tracker.hold(parameter, share=self._world_size)
        model.register_forward_pre_hook(lambda *_: self._begin_model())
        for module, group in zip(modules, self._layers, strict=True):
            module.register_forward_pre_hook(self._before_forward(group), with_kwargs=True)
            module.register_forward_hook(self._after_forward(group))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, what an optimizer's step makes is this rank's share, and so is its work."""
        self._step = _Step()
        with ExitStack() as stack:
            stack.callback(register_optimizer_step_pre_hook(lambda *_: self._share(self._world_size)).remove)
            stack.callback(register_optimizer_step_post_hook(lambda *_: self._share(1)).remove)
            stack.callback(self._abandon)
            yield

    def _share(self, share: int) -> None:
        self._tracker.share = share

    def _abandon(self) -> None:
        """A step that failed leaves nothing gathered."""
        for group in (*self._layers, self._root):
            self._free(group)
        self._share(1)

    # Forward

    def _begin_model(self) -> None:
        if self._step.is_backward:
            return
        if self._root.number is None:
            self._step = _Step()
            self._gather(self._root)
            self._wait(self._gather_ps(self._root))

    def _before_forward(self, group: _Group) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._step.is_backward:
                return  # recomputed: it is gathered for its backward
            self._begin_model()
            step = self._step
            if not step.order:
                # No layer's backward comes after that of the first one.
                tensor = _differentiable((args, kwargs))
                if tensor is not None:
                    tensor.register_hook(lambda _: self._end_backward())
            step.order.append(group)
            self._begin(group, self._next_of(group))

        return hook

    def _next_of(self, group: _Group) -> _Group | None:
        place = self._layers.index(group) + 1
        return self._layers[place] if place < len(self._layers) else None

    def _after_forward(self, group: _Group) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._step.is_backward:
                return
            self._end(group)
            self._free(group)
            tensor = _differentiable(output)
            if tensor is not None and tensor.grad_fn is not None:
                place = len(self._step.order) - 1
                # A tensor's hooks come before its node's: first the layer after this one ends, then marks are set by
                # whoever measures, then this one begins.
                tensor.register_hook(lambda _: self._end_backward())
                tensor.grad_fn.register_prehook(lambda _: self._begin_backward(place))

        return hook

    # Backward

    def _begin_backward(self, place: int) -> None:
        if not self._step.is_backward:
            self._step.is_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_model)
        group = self._step.order[place]
        self._step.running = group
        self._begin(group, self._step.order[place - 1] if place else None)

    def _end_backward(self) -> None:
        group, self._step.running = self._step.running, None
        if group is None:
            return
        group.communication_ps += self._reduce_ps(group)
        self._end(group)
        self._free(group)

    def _end_model(self) -> None:
        self._end_backward()
        for group in self._layers:
            self._free(group)
        self._wait(self._reduce_ps(self._root))
        self._free(self._root)
        self._step = _Step()

    # Both

    def _begin(self, group: _Group, following: _Group | None) -> None:
        if group.number is None:
            self._gather(group)
            self._wait(self._gather_ps(group))
        group.started_ps, group.communication_ps = self._tracker.clock_ps, 0
        if following is not None and following.number is None:
            self._gather(following)
            group.communication_ps = self._gather_ps(following)

    def _end(self, group: _Group) -> None:
        """What runs beside the layer takes its own time if that is longer."""
        self._tracker.clock_ps = max(self._tracker.clock_ps, group.started_ps + group.communication_ps)

    def _wait(self, duration_ps: int) -> None:
        """For communication that nothing runs beside."""
        self._tracker.clock_ps += duration_ps

    def _gather(self, group: _Group) -> None:
        group.number = self._tracker.allocate(group.whole_bytes)
        self._tracker.check_limit(group.whole_bytes)

    def _free(self, group: _Group) -> None:
        if group.number is not None:
            self._tracker.free(group.number)
            group.number = None

    def _reduce_ps(self, group: _Group) -> int:
        """Puts the gradients' shares in their place. Picoseconds of the reduce-scatter."""
        for parameter in group.parameters:
            if parameter.grad is not None:
                self._tracker.shrink(parameter.grad, self._world_size)
        return self._gather_ps(group)

    def _gather_ps(self, group: _Group) -> int:
        """A ring passes all of the group but this rank's share through each link (Thakur et al. 2005)."""
        moved_bytes = group.whole_bytes * (self._world_size - 1) / self._world_size
        return round(moved_bytes / self._bytes_per_s * PICOSECONDS)


def _count_of_layers(model: nn.Module, layer_fqns: Sequence[str]) -> Mapping[nn.Parameter, int]:
    counts: dict[nn.Parameter, int] = {}
    for fqn in layer_fqns:
        for parameter in model.get_submodule(fqn).parameters():
            counts[parameter] = counts.get(parameter, 0) + 1
    return counts


def _bytes_of(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _differentiable(values: Any) -> Tensor | None:
    tensors = (value for value in tree_iter(values) if isinstance(value, Tensor))
    return next((t for t in tensors if t.requires_grad and t.is_floating_point()), None)
