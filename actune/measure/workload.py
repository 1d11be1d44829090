"""A target brought to life on a device: one model, put back to its start before each trial, switched between plans."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from actune.ac import Application
from actune.errors import PlanError, TargetError
from actune.measure.device import Device
from actune.measure.materialize import state_of
from actune.plan import Plan, plan_hash
from actune.profiler import discover, structure_fingerprint
from actune.records import ModelStructure
from actune.target_spec import parse_target_spec
from actune.targets import BoundTarget, load_target, source_fingerprint


class Workload:
    """The model, its optimizer and its batches. Every trial starts from the same parameters, buffers and seed.

    Attributes:
        target: what the user named.
        model: kept for the worker's life; plans are applied to it and removed.
        structure: its layers.
    """

    def __init__(self, spec_text: str, device: Device, *, seed: int) -> None:
        """Builds the target.

        Raises:
            UsageError: what the spec names does not exist.
            TargetError: the target's code raised, or the model has no layers.
        """
        self._spec_text = spec_text
        self.device = device
        self._seed = seed
        torch.manual_seed(seed)
        self.target: BoundTarget = load_target(spec_text)
        if self.target.has_parallelize:
            raise TargetError(
                f"target '{spec_text}' has parallelize(): it is trained by several processes, which this version does "
                "not start. Remove parallelize() to tune the plan of one process."
            )
        self.model = device.build(self.target)
        self.structure: ModelStructure = discover(self.model, self.target.layer_fqns)
        # Where ops compute nothing, no step changes what tensors hold.
        self._start = _copy_of_state(self.model) if device.computes else {}
        self._applications: dict[str, Application] = {}
        self._optimizer: Optimizer | None = None
        self._batches: dict[int, Any] = {}
        self._has_run = False

    @property
    def fingerprint(self) -> str:
        """Equal for targets that run the same."""
        source = source_fingerprint(parse_target_spec(self._spec_text))
        return f"{source}-{structure_fingerprint(self.model)}-{self._seed}"

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, shared ones once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def bookkeeping(self) -> list[Tensor]:
        """Tensors that are the measuring's own, not the target's."""
        return list(self._start.values())

    def restart(self) -> None:
        """Parameters and buffers as they were at first, a new optimizer, no gradients, no batches."""
        self._optimizer = None
        self._batches.clear()
        self.model.zero_grad(set_to_none=True)
        if self._has_run:  # else nothing has changed, and gigabytes would be copied for nothing
            with torch.no_grad():
                for name, tensor in state_of(self.model):
                    if name in self._start:
                        tensor.copy_(self._start[name])
            self._has_run = False
        self.device.clean_up()

    def start_optimizer(self) -> None:
        """A new optimizer, whose state comes with its first step."""
        self._optimizer = self.target.optimizer(self.model)

    def fetch_batch(self, step: int) -> Any:
        """The batch of a step on the device; only the latest is kept."""
        if step not in self._batches:
            self._batches = {step: self.device.fetch(partial(self.target.batch, step))}
        return self._batches[step]

    def clear_gradients(self) -> None:
        """What a step begins with; apart, since frees of older tensors are invisible to a peak probe."""
        self.model.zero_grad(set_to_none=True)

    def forward_backward(self, step: int) -> Tensor:
        """Loss and gradients of a step, with random numbers that depend on nothing but seed and step."""
        batch = self.fetch_batch(step)
        self._has_run = True  # buffers may change from here on
        torch.manual_seed(self._seed + step)
        loss = self.target.loss(self.model, batch)
        loss.backward()
        return loss.detach()

    def train_step(self, step: int) -> None:
        """Zero gradients, forward, loss, backward, optimizer."""
        self.clear_gradients()
        self.forward_backward(step)
        self.optimizer_step()

    def optimizer_step(self) -> None:
        """What a step ends with."""
        assert self._optimizer is not None, "start_optimizer comes first"
        self._has_run = True
        self._optimizer.step()

    def warm_up(self, plan: Plan) -> float | None:
        """Compiles, and warms autotuners up, before a peak is taken: seconds of the first call, None on an eager CPU.

        On an eager CPU nothing is warmed up by a step, so that a plan over the budget is known after its first.
        """
        if plan.compile == "off" and not self.device.warms_up:
            return None
        start_s = time.perf_counter()
        with self.under(plan):
            self.forward_backward(0)
        first_call_s = time.perf_counter() - start_s
        self.clear_gradients()
        self.device.release_cached()  # what tuning tried out; libraries keep their workspaces, as in any later step
        return None if plan.compile == "off" else first_call_s

    @contextmanager
    def under(self, plan: Plan) -> Iterator[None]:
        """Runs the block on the device with the plan applied.

        The regions of a plan are made once: switching between plans costs microseconds, and compiled code is kept until
        `forget_plans`.

        Raises:
            PlanError: the plan does not fit the model.
        """
        if plan.compile != "off" and not self.device.computes:
            raise PlanError(
                f"compile: '{plan.compile}' can't be simulated: only eager ops can. Set compile = \"off\", or measure "
                "on a real device."
            )
        key = plan_hash(plan)
        if key not in self._applications:
            self._applications[key] = Application(self.model, plan, self.structure.layer_fqns)
        application = self._applications[key]
        application.attach()
        try:
            with self.device.running():
                yield
        finally:
            application.detach()

    def forget_plans(self) -> None:
        """Drops regions and compiled code of all plans."""
        compiled = any(application.plan.compile != "off" for application in self._applications.values())
        self._applications.clear()
        if compiled:
            torch._dynamo.reset()


def _copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_of(model)}
