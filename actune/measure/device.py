"""The device of a worker: what it is, what it holds, and how a step on it is timed."""

from __future__ import annotations

import gc
import os
import platform
import re
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._pytree import tree_map

from actune.device_spec import PREFIX, device_names, load_device_spec
from actune.errors import UsageError
from actune.measure.allocations import AllocationTrace
from actune.measure.materialize import is_on_meta, materialize
from actune.measure.ranks import local_of
from actune.measure.recording import ClockTimer, MemoryRecorder, StepTimer
from actune.records import RENDEZVOUS, Environment, StepSample
from actune.targets import BoundTarget


class PeakProbe(Protocol):
    """Watches one step. Its numbers hold once the `with` block has ended."""

    @property
    def peak_bytes(self) -> int:
        """See the design's vocabulary."""
        ...

    @property
    def allocated_bytes(self) -> int | None:
        """CUDA: the allocator's peak of allocated bytes."""
        ...

    @property
    def reserved_bytes(self) -> int | None:
        """CUDA: the allocator's peak of reserved bytes."""
        ...

    @property
    def allocator_retries(self) -> int:
        """How often the allocator gave its whole cache back, since there was no room for what was asked for."""
        ...

    @property
    def note(self) -> str | None:
        """Why the peak may not be the plan's alone; None if nothing speaks for that."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Device(Protocol):
    """What measuring needs of a device.

    Attributes:
        torch_device: where tensors of the target are.
        computes: whether ops have values as results; on a simulated device, tensors have sizes and nothing more.
        warms_up: whether the first eager step does what later ones don't, such as choosing kernels.
    """

    torch_device: torch.device
    computes: bool
    warms_up: bool

    def build(self, target: BoundTarget) -> nn.Module:
        """The target's model on the device, or, if it is to be distributed first, on the meta device.

        Raises:
            TargetError: the target's code raised, or does not say how its model is initialised.
        """
        ...

    def distribute(self, target: BoundTarget, model: nn.Module) -> nn.Module:
        """The model that is trained, of what `build` returned: distributed as the target does it, and on the device.

        Raises:
            TargetError: the target's code raised, or does not say how its model is initialised.
        """
        ...

    def fetch(self, make: Callable[[], Any]) -> Any:
        """What `make` returns (tensors in lists, tuples and dicts), on the device."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Within it, the target's steps run on the device."""
        ...

    def environment(self) -> Environment:
        """What must match before two measurements are compared."""
        ...

    def live_bytes(self, ignore: Iterable[Tensor] = ()) -> int:
        """Bytes held by tensors right now; `ignore` are tensors of the measuring itself."""
        ...

    def reserved_bytes(self) -> int | None:
        """The most that a caching allocator has reserved since `release_cached`; None without one."""
        ...

    def outside_bytes(self) -> int:
        """What the device holds beyond the allocator."""
        ...

    def peak_probe(self, ignore: Iterable[Tensor] = ()) -> PeakProbe:
        """A probe for one step. Gradients of earlier steps must be freed before it is entered."""
        ...

    def memory_recorder(self) -> MemoryRecorder:
        """Records what a step holds between marks."""
        ...

    def step_timer(self) -> StepTimer:
        """Times a step between marks."""
        ...

    def timed(self, step: Callable[[], None]) -> StepSample:
        """Runs the step and times it, everything that it started on the device included."""
        ...

    def set_cap(self, budget_bytes: int | None) -> None:
        """Makes the device refuse allocations beyond the budget, where it can; None lifts the cap."""
        ...

    def without_limit(self) -> AbstractContextManager[None]:
        """Lifts the limit of what can be held, where it is only a figure; nothing on a device that is real."""
        ...

    def release_cached(self) -> None:
        """Gives cached memory back."""
        ...

    def clean_up(self) -> None:
        """`release_cached`, and what libraries keep in the allocator: a trial starts where the first one did."""
        ...


def open_device(text: str, *, world_size: int = 1) -> Device:
    """The device of that name, for this process.

    Args:
        text: as given. Of `cuda`, each rank of a job takes the card with its local number.
        world_size: a simulated device may be one of several that share the model (FSDP).

    Raises:
        UsageError: there is none, or this machine does not have it.
    """
    if world_size < 1:
        raise UsageError(f"world size: {world_size} is no number of devices. Expected 1 or more.")
    if text == "cpu":
        return CpuDevice()
    if re.fullmatch(r"cuda(:\d+)?", text):
        from actune.measure.cuda import CudaDevice

        return CudaDevice(text, local_rank=int(os.environ["LOCAL_RANK"]) if RENDEZVOUS in os.environ else None)
    if text.startswith(PREFIX):
        from actune.measure.simulated import SimDevice

        return SimDevice(load_device_spec(text.removeprefix(PREFIX)), world_size=world_size)
    simulated = ", ".join(PREFIX + name for name in device_names())
    raise UsageError(
        f"device '{text}' is not known. Expected cpu, cuda, cuda:N for the card with the number N, or a simulated one: "
        f"{simulated}."
    )


class RealDevice:
    """What devices have in common whose ops compute."""

    torch_device: torch.device
    computes = True

    def build(self, target: BoundTarget) -> nn.Module:
        """The model on the device; one built on the meta device gets storage and its own initialisation.

        One that is to be distributed gets them later: its storage is the shards'.
        """
        model = target.model(self.torch_device)
        if is_on_meta(model) and target.has_parallelize:
            return model
        return materialize(model, self.torch_device, target=target.name)

    def distribute(self, target: BoundTarget, model: nn.Module) -> nn.Module:
        """As torchtitan does it: shards on the meta device if it was built there, then storage, then initialisation."""
        parallel = target.parallelize(model)
        return materialize(parallel, self.torch_device, target=target.name) if is_on_meta(parallel) else parallel

    def fetch(self, make: Callable[[], Any]) -> Any:
        """Tensors are copied to the device if they are elsewhere.

        That is before a step is timed, so nothing is gained by pinning them.
        """
        return tree_map(lambda x: x.to(self.torch_device) if isinstance(x, Tensor) else x, make())

    def running(self) -> AbstractContextManager[None]:
        """Nothing has to be done."""
        return nullcontext()


class CpuDevice(RealDevice):
    """The processor. Peaks come from the allocator's own events; time is the wall's and the process's own."""

    warms_up = False

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        # One thread unless the user says otherwise: on a shared machine more of them wait for each other, and a trial's
        # process time would not be its work.
        self._threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
        torch.set_num_threads(self._threads)

    def environment(self) -> Environment:
        """The processor, its threads, and the versions."""
        return Environment(
            device="cpu",
            device_name=_processor_name(),
            device_total_bytes=None,
            threads=self._threads,
            torch_version=torch.__version__,
            python_version=platform.python_version(),
            platform=platform.platform(),
        )

    def live_bytes(self, ignore: Iterable[Tensor] = ()) -> int:
        """The storages of all tensors that Python knows, each counted once."""
        gc.collect()
        seen = {_storage_key(tensor) for tensor in ignore}
        live_bytes = 0
        for thing in gc.get_objects():
            # By type, not isinstance: lazy modules of other libraries import themselves when asked for their class.
            kind = type(thing)
            if not issubclass(kind, Tensor) or issubclass(kind, FakeTensor | FunctionalTensor):
                continue  # the compiler keeps tensors without storage, which claim to be on the CPU
            if local_of(thing) is not thing:
                continue  # a DTensor: its local tensor is among the objects too
            if thing.device.type == "cpu" and thing.layout == torch.strided:
                key = _storage_key(thing)
                if key not in seen:
                    seen.add(key)
                    live_bytes += thing.untyped_storage().nbytes()
        return live_bytes

    def reserved_bytes(self) -> None:
        """The CPU allocator reserves nothing."""

    def outside_bytes(self) -> int:
        """All that counts on a CPU is the allocator's."""
        return 0

    def peak_probe(self, ignore: Iterable[Tensor] = ()) -> PeakProbe:
        """Live bytes at the start plus the highest running sum of the allocator's events."""
        return CpuPeakProbe(self.live_bytes(ignore))

    def memory_recorder(self) -> MemoryRecorder:
        """The allocator's events between marks in the profiler's stream."""
        return AllocationTrace()

    def step_timer(self) -> StepTimer:
        """The process's own time, which other programs don't slow down, where one thread computes."""
        return ClockTimer(time.process_time if self._threads == 1 else time.perf_counter)

    def timed(self, step: Callable[[], None]) -> StepSample:
        """Wall time and the process's CPU time."""
        process_start_s, start_s = time.process_time(), time.perf_counter()
        step()
        return StepSample(time.perf_counter() - start_s, time.process_time() - process_start_s)

    def set_cap(self, budget_bytes: int | None) -> None:
        """A processor has no cap: the peak is compared with the budget after each step."""

    def without_limit(self) -> AbstractContextManager[None]:
        """The machine has what it has."""
        return nullcontext()

    def release_cached(self) -> None:
        """The CPU allocator caches nothing."""
        gc.collect()

    def clean_up(self) -> None:
        """No library keeps anything there."""
        self.release_cached()


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class CpuPeakProbe:
    """The exact peak of one step on a CPU, compiled kernels included."""

    allocated_bytes = None
    reserved_bytes = None
    allocator_retries = 0
    note = None

    def __init__(self, live_bytes: int) -> None:
        self._live_bytes = live_bytes
        self._trace = AllocationTrace()
        self.peak_bytes = live_bytes

    def __enter__(self) -> Self:
        self._trace.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._trace.__exit__(*exc)
        self.peak_bytes = self._live_bytes + max(0, self._trace.highest_running_sum_bytes())


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # no such file on this system; platform knows less
    return platform.processor() or platform.machine()
