"""A CUDA card: peaks from the allocator's statistics, time from CUDA events, the budget as a hard cap."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor

from actune.errors import UsageError
from actune.measure.device import PeakProbe, RealDevice
from actune.measure.recording import MemoryRecorder, StepTimer, Stretch
from actune.records import Environment, StepSample
from actune.units import format_bytes

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Where PyTorch reads its allocator's settings (`c10/cuda/CUDAAllocatorConfig.h`); the first is the older name."""
CONTEXT_BYTES = 2 * 2**30
"""More than a process holds on a card that has only just opened it: the rest is another's."""
STEADY_BYTES = 64 * 2**20
"""What lies outside of the allocator changes by less in a step after the warm-up, unless another process is at work."""


class CudaDevice(RealDevice):
    """One card. What other processes hold on it counts as lying outside the allocator, so use a card of your own."""

    warms_up = True

    def __init__(self, text: str, *, local_rank: int | None = None) -> None:
        """Args:
        text: `cuda` or `cuda:N`.
        local_rank: of a process that is one of several on this machine; its card has that number.

        Raises:
            UsageError: there is no such card, or one card is named for several processes.
        """
        if not torch.cuda.is_available():
            raise UsageError(
                f"device '{text}': this machine has no CUDA device that torch {torch.__version__} can use."
            )
        if local_rank is not None and ":" in text:
            raise UsageError(
                f"device '{text}' is one card, and each of several processes needs its own. Say --device cuda, and "
                "choose the cards by CUDA_VISIBLE_DEVICES."
            )
        self.torch_device = torch.device(text if ":" in text else f"cuda:{local_rank or 0}")
        if (self.torch_device.index or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"device '{text}': this machine has {torch.cuda.device_count()} CUDA devices, from cuda:0, and "
                f"{self.torch_device} is none of them."
            )
        self._text = text
        torch.cuda.set_device(self.torch_device)
        torch.cuda.init()
        self._outside_at_start_bytes = self.outside_bytes()

    def environment(self) -> Environment:
        """The card and the versions."""
        properties = torch.cuda.get_device_properties(self.torch_device)
        return Environment(
            device=self._text,
            device_name=properties.name,
            device_total_bytes=properties.total_memory,
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            python_version=platform.python_version(),
            platform=platform.platform(),
            allocator="; ".join(filter(None, map(os.environ.get, ALLOCATOR_SETTINGS))),
        )

    def reserved_bytes(self) -> int:
        """What the allocator has reserved: without `release_cached` it gives nothing back."""
        return torch.cuda.memory_reserved(self.torch_device)

    def outside_bytes(self) -> int:
        """What the card holds beyond the allocator: the context, libraries' workspaces, other processes."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.torch_device)
        return max(0, total_bytes - free_bytes - torch.cuda.memory_reserved(self.torch_device))

    def shared_note(self, outside_before_bytes: int, outside_bytes: int) -> str | None:
        """Why what lies outside of the allocator is not this process's alone; None if nothing speaks for that.

        Args:
            outside_before_bytes: before a step that followed the warm-up.
            outside_bytes: after it.
        """
        moved_bytes = abs(outside_bytes - outside_before_bytes)
        if moved_bytes > STEADY_BYTES:
            return (
                f"another process is at work on the card: what lies outside of the allocator changed by "
                f"{format_bytes(moved_bytes)} in a step, so the peak is not the plan's alone. Use a card of your own"
            )
        if self._outside_at_start_bytes > CONTEXT_BYTES:
            return (
                f"the card is shared: {format_bytes(self._outside_at_start_bytes)} were taken before the target was "
                "there, and count in every peak. Use a card of your own"
            )
        return None

    def live_bytes(self, ignore: Iterable[Tensor] = ()) -> int:
        """What the allocator has given out; tensors of the measuring itself are kept on the CPU."""
        gc.collect()
        return torch.cuda.memory_allocated(self.torch_device)

    def peak_probe(self, ignore: Iterable[Tensor] = ()) -> PeakProbe:
        """The allocator's peaks of one step."""
        return CudaPeakProbe(self)

    def memory_recorder(self) -> MemoryRecorder:
        """The allocator's statistics at each mark."""
        return CudaMemoryRecorder(self.torch_device)

    def step_timer(self) -> StepTimer:
        """Events at each mark."""
        return CudaStepTimer(self.torch_device)

    def timed(self, step: Callable[[], None]) -> StepSample:
        """Time between two events around everything that the step enqueued."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.torch_device)
        start.record()
        step()
        end.record()
        end.synchronize()
        step_time_s = start.elapsed_time(end) / 1e3
        return StepSample(step_time_s, step_time_s)

    def set_cap(self, budget_bytes: int | None) -> None:
        """Beyond the budget the allocator raises torch.OutOfMemoryError. What lies outside of it counts too.

        The fraction is of the card's total memory and is compared with reserved bytes, before each new segment or page
        (`alloc_block` in `c10/cuda/CUDACachingAllocator.cpp`); 1 is no cap.
        """
        total_bytes = torch.cuda.get_device_properties(self.torch_device).total_memory
        fraction = 1.0
        if budget_bytes is not None:
            fraction = min(1.0, max(0.0, (budget_bytes - self.outside_bytes()) / total_bytes))
        torch.cuda.set_per_process_memory_fraction(fraction, self.torch_device)

    def without_limit(self) -> AbstractContextManager[None]:
        """The card has what it has."""
        return nullcontext()

    def release_cached(self) -> None:
        """Empties the caching allocator."""
        gc.collect()
        torch.cuda.empty_cache()

    def clean_up(self) -> None:
        """Also takes away the workspaces that cuBLAS keeps in the allocator, as PyTorch's tests do, and old peaks."""
        torch.cuda.synchronize(self.torch_device)
        torch._C._cuda_clearCublasWorkspaces()
        self.release_cached()
        torch.cuda.reset_peak_memory_stats(self.torch_device)


class CudaPeakProbe:
    """Peaks of allocated and reserved bytes; `peak_bytes` is reserved plus what lies outside the allocator.

    What lies outside is read as the step ends. It hardly shrinks before, since a context keeps what libraries load.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._outside_before_bytes = 0
        self._retries_before = 0
        self.peak_bytes = 0
        self.allocated_bytes: int | None = None
        self.reserved_bytes: int | None = None
        self.allocator_retries = 0
        self.note: str | None = None

    def __enter__(self) -> Self:
        torch.cuda.synchronize(self._device.torch_device)
        torch.cuda.reset_peak_memory_stats(self._device.torch_device)
        self._outside_before_bytes = self._device.outside_bytes()
        self._retries_before = self._retries()
        return self

    def __exit__(self, *exc: object) -> None:
        torch.cuda.synchronize(self._device.torch_device)
        outside_bytes = self._device.outside_bytes()
        self.allocated_bytes = torch.cuda.max_memory_allocated(self._device.torch_device)
        self.reserved_bytes = torch.cuda.max_memory_reserved(self._device.torch_device)
        self.peak_bytes = self.reserved_bytes + outside_bytes
        self.allocator_retries = self._retries() - self._retries_before
        self.note = self._device.shared_note(self._outside_before_bytes, outside_bytes)

    def _retries(self) -> int:
        # Resetting peaks leaves this counter alone. It is missing from the statistics before the first allocation.
        return int(torch.cuda.memory_stats(self._device.torch_device).get("num_alloc_retries", 0))


class CudaMemoryRecorder:
    """Allocated bytes between marks; the allocator counts as the host enqueues, so marks need not wait for the card."""

    def __init__(self, torch_device: torch.device) -> None:
        self._torch_device = torch_device
        self._start_bytes = 0
        self.stretches: list[Stretch] = []

    def __enter__(self) -> Self:
        torch.cuda.synchronize(self._torch_device)
        self._begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mark()

    def mark(self) -> None:
        """Notes the stretch that ends, and resets the allocator's peak for the next one."""
        now_bytes = torch.cuda.memory_allocated(self._torch_device)
        peak_bytes = torch.cuda.max_memory_allocated(self._torch_device)
        self.stretches.append(Stretch(now_bytes - self._start_bytes, peak_bytes - self._start_bytes))
        self._begin()

    def _begin(self) -> None:
        self._start_bytes = torch.cuda.memory_allocated(self._torch_device)
        torch.cuda.reset_peak_memory_stats(self._torch_device)


class CudaStepTimer:
    """Times by events that the card passes between the marks' kernels."""

    def __init__(self, torch_device: torch.device) -> None:
        self._torch_device = torch_device
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> Self:
        torch.cuda.synchronize(self._torch_device)
        self._events = []
        self.mark()
        return self

    def __exit__(self, *exc: object) -> None:
        self.mark()
        torch.cuda.synchronize(self._torch_device)

    def mark(self) -> None:
        """Enqueues an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    @property
    def stretches_s(self) -> list[float]:
        """Seconds between events."""
        pairs = zip(self._events, self._events[1:], strict=False)
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]
