"""A target brought to life on a device: one model, put back to its start before each trial, switched between plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from actune.ac import Application, own_checkpointing
from actune.errors import PlanError, TargetError
from actune.measure.compiled_code import CompileReport, GraphBreaks, StepWatch, frames_compiled
from actune.measure.device import Device
from actune.measure.materialize import state_of
from actune.measure.ranks import Ranks, join_ranks, local_of
from actune.plan import Plan, plan_hash
from actune.profiler import discover, structure_fingerprint
from actune.records import Environment, ModelStructure, StepSample
from actune.target_spec import parse_target_spec
from actune.targets import BoundTarget, load_target, source_fingerprint


class Workload:
    """The model, its optimizer and its batches. Every trial starts from the same parameters, buffers and seed.

    Attributes:
        target: what the user named.
        model: kept for the worker's life; plans are applied to it and removed.
        structure: its layers.
        ranks: the processes that it is distributed over.
        is_spent: a step of a distributed model was left in its middle, so that none can follow.
    """

    def __init__(self, spec_text: str, device: Device, *, seed: int, world_size: int = 1) -> None:
        """Builds the target, and distributes it if it has `parallelize` and the device is real.

        Args:
            spec_text: names the target.
            device: where it is.
            seed: of the model and its data, on all ranks.
            world_size: of a job of which this process is the only rank that exists.

        Raises:
            UsageError: what the spec names does not exist, or there are several ranks and the target has no
                `parallelize`.
            TargetError: the target's code raised, or the model has no layers, checkpoints something by itself, or is
                another one on another rank.
        """
        self._spec_text = spec_text
        self.device = device
        self._seed = seed
        torch.manual_seed(seed)
        self.target: BoundTarget = load_target(spec_text)
        self.ranks = Ranks()
        if device.computes:
            self.ranks = join_ranks(self.target, device.torch_device.type, world_size=world_size)
        model = device.build(self.target)
        if (found := own_checkpointing(model)) is not None:
            raise TargetError(f"target '{spec_text}': {found}")
        # Before it is distributed: `fully_shard` gives modules classes of its own.
        self.structure: ModelStructure = discover(model, self.target.layer_fqns)
        self._structure_fingerprint = structure_fingerprint(model)
        self._check_same_on_all_ranks()
        self.model = device.distribute(self.target, model)
        # Where ops compute nothing, no step changes what tensors hold.
        self._start = _copy_of_state(self.model) if device.computes else {}
        self._applications: dict[str, Application] = {}
        self._pieces_as_ops = False  # how what the model compiles itself was compiled, if it was
        self._frames_known = frames_compiled()  # when compiled code was last dropped
        self._resets = 0  # of compiled code, amid a request
        self._resets_of_code: dict[str, int] = {}  # how many there had been when a plan ran last, by its hash
        self._optimizer: Optimizer | None = None
        self._batches: dict[int, Any] = {}
        self._has_run = False
        self.is_spent = False

    @property
    def fingerprint(self) -> str:
        """Equal for targets that run the same."""
        source = source_fingerprint(parse_target_spec(self._spec_text))
        return f"{source}-{self._structure_fingerprint}-{self._seed}"

    def _check_same_on_all_ranks(self) -> None:
        found = self.ranks.gather(self._structure_fingerprint)
        other = next((rank for rank, fingerprint in enumerate(found) if fingerprint != found[0]), None)
        if other is not None:
            raise TargetError(
                f"target '{self._spec_text}': rank {other} builds another model than rank 0. All ranks must build the "
                "same one; parallelize() is what distributes it."
            )

    @property
    def environment(self) -> Environment:
        """What must match before two measurements are compared: the device, and over how many the model is shared."""
        environment = self.device.environment()
        if not self.ranks.label:
            return environment
        return replace(environment, device_name=f"{environment.device_name} ({self.ranks.label})")

    @property
    def has_true_values(self) -> bool:
        """Whether loss and gradients are those of training: not where nothing computes, or other ranks are faked."""
        return self.device.computes and not self.ranks.are_fake

    @property
    def is_distributed(self) -> bool:
        """Whether the target has distributed its model, if only over one rank."""
        return self.device.computes and self.target.has_parallelize

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, shared ones once; of a distributed model, those of this rank."""
        return sum(local_of(parameter).nbytes for parameter in self.model.parameters())

    @property
    def bookkeeping(self) -> list[Tensor]:
        """Tensors that are the measuring's own, not the target's."""
        return list(self._start.values())

    def restart(self) -> None:
        """Parameters and buffers as they were at first, a new optimizer, no gradients, no batches."""
        if self.is_spent:
            return
        self._optimizer = None
        self._batches.clear()
        self.model.zero_grad(set_to_none=True)
        if self._has_run:  # else nothing has changed, and gigabytes would be copied for nothing
            with torch.no_grad():
                for name, tensor in state_of(self.model):
                    if name in self._start:
                        local_of(tensor).copy_(self._start[name])
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
        return local_of(loss.detach())

    def train_step(self, step: int) -> None:
        """Zero gradients, forward, loss, backward, optimizer."""
        self.clear_gradients()
        self.forward_backward(step)
        self.optimizer_step()

    def timed(self, step: Callable[[], None]) -> StepSample:
        """Runs a step, on all ranks from the same moment, and times it: as long as it takes the slowest rank."""
        self.ranks.barrier()
        return self.ranks.slowest(self.device.timed(step))

    def optimizer_step(self) -> None:
        """What a step ends with."""
        assert self._optimizer is not None, "start_optimizer comes first"
        self._has_run = True
        self._optimizer.step()

    def warm_up(self, plan: Plan) -> CompileReport | None:
        """Compiles, and warms autotuners up, before a peak is taken. None where nothing was compiled.

        On an eager CPU nothing is warmed up by a step, so that a plan over the budget is known after its first.
        """
        if plan.compile == "off" and not self.device.warms_up:
            return None
        report = self._first_steps(plan)
        self.clear_gradients()
        self.device.release_cached()  # what tuning tried out; libraries keep their workspaces, as in any later step
        return report

    def _first_steps(self, plan: Plan) -> CompileReport | None:
        """What compiles in a first step, by a second one beside it; None if nothing did."""
        frames = frames_compiled()
        with self.under(plan):
            breaks = GraphBreaks()  # not before: compiled code may be dropped on the way in, and the list with it
            first_s = self._seconds_of_step()
            self.clear_gradients()
            # All ranks go on or none does: what one compiles depends on its own batch.
            if plan.compile == "off" and not self.ranks.agree_max(frames_compiled() - frames):
                return None
            watch = StepWatch(self.model)
            with watch.watching():
                next_s = self._seconds_of_step()
        code = watch.compiled_code(plan, self.structure.layer_fqns, breaks)
        return CompileReport(None if plan.compile == "off" else max(0.0, first_s - next_s), code)

    def _seconds_of_step(self) -> float:
        def step() -> None:
            self.forward_backward(0)

        return self.device.timed(step).step_time_s

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
        ran_before = self._resets_of_code.get(key)
        self._compile_pieces_for(plan)
        self._resets_of_code[key] = self._resets
        application.attach()
        try:
            with self.device.running():
                if ran_before not in (None, self._resets) and self._batches:
                    # Its code was dropped since: it is compiled again here, and not in the step that is measured.
                    self.forward_backward(next(iter(self._batches)))
                    self.clear_gradients()
                yield
        except BaseException:
            self.is_spent = self.is_distributed
            raise
        finally:
            application.detach()

    def _compile_pieces_for(self, plan: Plan) -> None:
        """Drops compiled code where SAC is to see what the model compiles itself otherwise than the last plan's did.

        Such a piece has one compiled code in a process, which plans with and without `off+ops` can't share.
        """
        as_ops = plan.compile == "off+ops"
        sees_pieces = any(rule.treatment.policy == "selective" for rule in plan.rules)
        if sees_pieces and plan.compile in ("off", "off+ops") and as_ops != self._pieces_as_ops:
            self._pieces_as_ops = as_ops
            self._resets += 1
            torch._dynamo.reset()

    def forget_plans(self) -> None:
        """Drops regions and compiled code of all plans, and of what the model compiles itself.

        Else Dynamo would go by what it has seen under the plans before, and report only what it had not.
        """
        compiled = any(application.plan.compile != "off" for application in self._applications.values())
        self._applications.clear()
        self._resets_of_code.clear()
        if compiled or frames_compiled() != self._frames_known:
            torch._dynamo.reset()
            self._pieces_as_ops = False
            self._frames_known = frames_compiled()


def _copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: local_of(tensor.detach()).to("cpu", copy=True) for name, tensor in state_of(model)}
