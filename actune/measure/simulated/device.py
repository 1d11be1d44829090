"""A simulated device: fake tensors, a clock that ops move on, and a model of the caching allocator."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map

from actune.device_spec import PREFIX, SimulatedDevice
from actune.errors import TargetError
from actune.measure.recording import Stretch
from actune.measure.simulated.blocks import AllocatorFullError
from actune.measure.simulated.building import build_fake_model
from actune.measure.simulated.caching_allocator import replay
from actune.measure.simulated.card_ops import card_ops
from actune.measure.simulated.expandable_segments import PageBytes
from actune.measure.simulated.roofline import Roofline
from actune.measure.simulated.sharding import Sharding
from actune.measure.simulated.tracker import PICOSECONDS, StorageTracker
from actune.profiler import discover
from actune.records import Environment, StepSample
from actune.targets import BoundTarget
from actune.units import format_bytes


class SimDevice:
    """A device that is known by its figures alone. What runs on it is the same each time, to the last digit.

    Tensors are fake CPU tensors: a fake CUDA tensor has no backward on a machine without CUDA.

    Attributes:
        spec: its figures.
        roofline: how long ops take on it.
    """

    computes = False
    warms_up = False

    def __init__(self, spec: SimulatedDevice, *, world_size: int = 1) -> None:
        """Args:
        spec: the figures.
        world_size: of so many of them; more than one share parameters, gradients and optimizer state (FSDP).
        """
        self.spec = spec
        self.torch_device = torch.device("cpu")
        self.roofline = Roofline(spec)
        # The target may make small tensors of its own from lists or arrays, outside of ops.
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._tracker = StorageTracker(self._fake_mode, self.roofline.op_time_s)
        self._world_size = world_size
        self._sharding = Sharding(spec, self._tracker, world_size) if world_size > 1 else None
        pages = PageBytes(spec.small_page_bytes, spec.large_page_bytes)
        self._pages = pages if spec.expandable_segments else None
        self._cap_bytes = spec.total_bytes
        self._is_running = False
        self._has_failed = False
        self.set_cap(None)

    def environment(self) -> Environment:
        """The figures' name, and the versions: what runs depends on torch, not on this machine."""
        simulated = "simulated" if self._sharding is None else f"simulated, one of {self._world_size}"
        return Environment(
            device=PREFIX + self.spec.name,
            device_name=f"{self.spec.full_name} ({simulated})",
            device_total_bytes=self.spec.total_bytes,
            threads=1,
            torch_version=torch.__version__,
            python_version=platform.python_version(),
            platform=platform.platform(),
        )

    def build(self, target: BoundTarget) -> nn.Module:
        """The model, without values."""
        model = build_fake_model(target, self._fake_mode)
        if self._sharding is not None:
            self._sharding.shard(model, discover(model, target.layer_fqns).layer_fqns)
        for tensor in (*model.parameters(), *model.buffers()):
            self._tracker.hold(tensor)
        self._tracker.begin_tape()
        return model

    def distribute(self, target: BoundTarget, model: nn.Module) -> nn.Module:
        """The model as it is: other ranks do not exist, and `world_size` stands for what FSDP2 does."""
        return model

    def fetch(self, make: Callable[[], Any]) -> Any:
        """Real tensors, made fake: the target may draw or load them as it likes."""
        with _disable_current_modes():
            made = make()
            placed = tree_map(lambda x: self._fake_mode.from_tensor(x) if isinstance(x, Tensor) else x, made)
        for tensor in tree_iter(placed):
            if isinstance(tensor, Tensor):
                self._tracker.hold(tensor)
        return placed

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, ops run on the device.

        Raises:
            TargetError: an op asks for the value of a tensor.
            torch.OutOfMemoryError: the device is full.
        """
        if self._is_running:
            yield
            return
        collects = gc.isenabled()
        # What waits in cycles for the collector would be freed at another point of each run.
        gc.disable()
        self._is_running = True
        try:
            with (
                self._fake_mode,
                self._tracker,
                card_ops() if self.spec.kernels == "cuda" else nullcontext(),
                nullcontext() if self._sharding is None else self._sharding.running(),
            ):
                yield
        except BaseException as error:
            self._has_failed = True
            if not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
                raise
            raise TargetError(
                f"the target can't be simulated: {error.func} needs the values of a tensor, and on a simulated device "
                "tensors have only sizes. Shapes and branches that depend on data, or .item(), have to go; or measure "
                "on a real device."
            ) from error
        finally:
            self._is_running = False
            if collects:
                gc.enable()
            gc.collect(1)

    def live_bytes(self, ignore: Iterable[Tensor] = ()) -> int:
        """What the tracked storages hold, each rounded as the allocator does."""
        return self._tracker.live_bytes

    def peak_probe(self, ignore: Iterable[Tensor] = ()) -> SimPeakProbe:
        """The peaks of one step."""
        return SimPeakProbe(self)

    def memory_recorder(self) -> SimMemoryRecorder:
        """Allocated bytes between marks."""
        return SimMemoryRecorder(self._tracker)

    def step_timer(self) -> SimStepTimer:
        """The simulated clock at each mark."""
        return SimStepTimer(self._tracker)

    def timed(self, step: Callable[[], None]) -> StepSample:
        """The simulated clock around a step."""
        start_ps = self._tracker.clock_ps
        step()
        step_time_s = (self._tracker.clock_ps - start_ps) / PICOSECONDS
        return StepSample(step_time_s, step_time_s)

    def set_cap(self, budget_bytes: int | None) -> None:
        """Beyond the budget, or beyond what the device has, allocations raise torch.OutOfMemoryError."""
        self._cap_bytes = min(self.spec.total_bytes, budget_bytes or self.spec.total_bytes)
        self._tracker.limit_bytes = self._cap_bytes - self.spec.outside_bytes

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Within the block the device is as large as it needs to be: a profile is not to end where the card does."""
        self._tracker.limit_bytes = None
        try:
            yield
        finally:
            self.set_cap(None)

    def release_cached(self) -> None:
        """The allocator starts again from what is live."""
        # A step's own objects are young. Those of one that failed grew old while the error was on its way.
        gc.collect(2 if self._has_failed else 1)
        self._has_failed = False
        self._tracker.begin_tape()

    def clean_up(self) -> None:
        """No library keeps anything there."""
        self.release_cached()

    def outside_bytes(self) -> int:
        """What a process holds outside of the allocator on such a device."""
        return self.spec.outside_bytes

    def reserved_bytes(self) -> int:
        """The allocator's peak of reserved bytes since `release_cached`.

        Raises:
            torch.OutOfMemoryError: what is cut up and cached does not fit, though what is allocated would.
        """
        try:
            peaks = replay(self._tracker.tape, expandable=self._pages, limit_bytes=self._tracker.limit_bytes)
        except AllocatorFullError as error:
            raise torch.OutOfMemoryError(
                f"the simulated device's {format_bytes(self._cap_bytes)} are full: {error}"
            ) from None
        return peaks.reserved_bytes


class SimPeakProbe:
    """Peaks of allocated and reserved bytes; `peak_bytes` is reserved plus what lies outside the allocator."""

    allocator_retries = 0
    note = None

    def __init__(self, device: SimDevice) -> None:
        self._device = device
        self.peak_bytes = 0
        self.allocated_bytes: int | None = None
        self.reserved_bytes: int | None = None

    def __enter__(self) -> Self:
        self._device._tracker.begin_stretch()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            return  # the step did not end
        self.allocated_bytes = self._device._tracker.highest_bytes
        self.reserved_bytes = self._device.reserved_bytes()
        self.peak_bytes = self.reserved_bytes + self._device.spec.outside_bytes


class SimMemoryRecorder:
    """A MemoryRecorder of the tracker's allocated bytes."""

    def __init__(self, tracker: StorageTracker) -> None:
        self._tracker = tracker
        self._start_bytes = 0
        self.stretches: list[Stretch] = []

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mark()

    def mark(self) -> None:
        """Notes the stretch that ends, and begins the next one."""
        delta_bytes = self._tracker.live_bytes - self._start_bytes
        self.stretches.append(Stretch(delta_bytes, self._tracker.highest_bytes - self._start_bytes))
        self._begin()

    def _begin(self) -> None:
        self._tracker.begin_stretch()
        self._start_bytes = self._tracker.live_bytes


class SimStepTimer:
    """A StepTimer by the tracker's clock."""

    def __init__(self, tracker: StorageTracker) -> None:
        self._tracker = tracker
        self._readings_ps: list[int] = []

    def __enter__(self) -> Self:
        self._readings_ps = [self._tracker.clock_ps]
        return self

    def __exit__(self, *exc: object) -> None:
        self.mark()

    def mark(self) -> None:
        """Reads the clock."""
        self._readings_ps.append(self._tracker.clock_ps)

    @property
    def stretches_s(self) -> list[float]:
        """Seconds between readings."""
        return [(end - start) / PICOSECONDS for start, end in pairwise(self._readings_ps)]
