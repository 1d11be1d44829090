"""The CPU allocator's own events, by PyTorch's profiler.

A dispatch mode sees no temporaries inside ops, and switches compiled code off; the process's resident size is useless
for peaks of a few MiB. The profiler reports each allocation and each free of the c10 CPU allocator, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from actune.measure.gloo import settled_collectives
from actune.measure.recording import Stretch, stretch_of

_MARK = "actune::mark"


class AllocationTrace:
    """Records the allocations and frees of a `with` block, between marks; a MemoryRecorder.

    Frees of what was allocated before the block are not reported by PyTorch: free gradients before entering.
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._settled: AbstractContextManager[None] = nullcontext()

    def __enter__(self) -> AllocationTrace:
        self._settled = settled_collectives()
        self._settled.__enter__()
        self._profile.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._profile.__exit__(*exc)
        self._settled.__exit__(*exc)

    def mark(self) -> None:
        """Puts a mark into the profiler's own stream, whose clock is another one than Python's."""
        with record_function(_MARK):
            pass

    @property
    def stretches(self) -> list[Stretch]:
        """The allocations and frees between marks."""
        return [stretch_of(deltas_bytes) for deltas_bytes in self._deltas_between_marks_bytes()]

    def highest_running_sum_bytes(self) -> int:
        """The most that was held at once, over what was held at the start."""
        return stretch_of([delta for deltas in self._deltas_between_marks_bytes() for delta in deltas]).peak_bytes

    def _deltas_between_marks_bytes(self) -> list[list[int]]:
        """Bytes of each allocation (positive) and free (negative), in the order of time, cut at the marks."""
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        events: list[tuple[int, int | None]] = []
        for root in results.experimental_event_tree():
            for event in _walk(root):
                if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
                    events.append((event.start_time_ns, event.extra_fields.alloc_size))
                elif event.name == _MARK:
                    events.append((event.start_time_ns, None))
        events.sort(key=lambda event: event[0])
        between: list[list[int]] = [[]]
        for _, delta_bytes in events:
            if delta_bytes is None:
                between.append([])
            else:
                between[-1].append(delta_bytes)
        return between


def _walk(root: Any) -> Iterator[Any]:
    pending = [root]
    while pending:
        event = pending.pop()
        yield event
        pending.extend(event.children)
