"""The CPU allocator's own events, by PyTorch's profiler.

A dispatch mode sees no temporaries inside ops, and switches compiled code off; the process's resident size is useless
for peaks of a few MiB. The profiler reports each allocation and each free of the c10 CPU allocator, whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


class AllocationTrace:
    """Records the allocations and frees of a `with` block.

    Frees of what was allocated before the block are not reported by PyTorch: free gradients before entering.
    """

    def __init__(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> AllocationTrace:
        self._profile.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._profile.__exit__(*exc)

    def deltas_bytes(self) -> list[int]:
        """Bytes of each allocation (positive) and free (negative), in the order of time."""
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        events = [
            (event.start_time_ns, event.extra_fields.alloc_size)
            for root in results.experimental_event_tree()
            for event in _walk(root)
            if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu"
        ]
        events.sort(key=lambda event: event[0])
        return [size_bytes for _, size_bytes in events]

    def highest_running_sum_bytes(self) -> int:
        """The most that was held at once, over what was held at the start."""
        running_bytes = highest_bytes = 0
        for delta_bytes in self.deltas_bytes():
            running_bytes += delta_bytes
            highest_bytes = max(highest_bytes, running_bytes)
        return highest_bytes


def _walk(root: Any) -> Iterator[Any]:
    pending = [root]
    while pending:
        event = pending.pop()
        yield event
        pending.extend(event.children)
