"""What a step on fake tensors allocates and frees, and how long it takes, op by op."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from actune.ac.ops import Op
from actune.measure.simulated.caching_allocator import Event, rounded_bytes
from actune.measure.simulated.op_cache import OpCache, OpTime
from actune.units import format_bytes

PICOSECONDS = 1_000_000_000_000

_DEVICE = torch.ops.prim.device.default


class StorageTracker(TorchDispatchMode):
    """Follows storages from the op that makes them to their end, and moves a clock on at each op.

    It is entered above the FakeTensorMode, so that it sees what a dispatch mode sees on a real device: views share
    their storage, and temporaries inside ops are unseen.

    Attributes:
        live_bytes: held right now, each storage rounded as the allocator does.
        highest_bytes: the most that was held since `begin_stretch`.
        clock_ps: an integer, since differences of it must not depend on what ran before.
        limit_bytes: beyond it, an allocation is out of memory; None for no limit.
        share: storages that ops make are one of so many equal shares, and so is the ops' work.
    """

    supports_higher_order_operators = True

    def __init__(self, fake_mode: FakeTensorMode, op_time_s: OpTime) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.highest_bytes = 0
        self.clock_ps = 0
        self.limit_bytes: int | None = None
        self.share = 1
        self._ops = OpCache(fake_mode, op_time_s)
        # By the storage's address: its weak reference, and its number on the tape.
        self._held: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._sizes_bytes: dict[int, int] = {}
        self._allocations = 0
        self._tape: list[Event] = []

    def __torch_dispatch__(self, op: Op, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the op, notes the storages that it makes, and moves the clock on."""
        kwargs = kwargs or {}
        if op is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked several times as often as ops run
        if op.namespace == "prim":
            return op(*args, **kwargs)  # a question about a tensor: nothing runs on the device
        output, made, time_s = self._ops.run(op, args, kwargs)
        for tensor in made:
            self.hold(tensor)
        self.clock_ps += round(time_s * PICOSECONDS) // self.share
        return output

    def hold(self, tensor: Tensor, *, share: int | None = None) -> None:
        """Counts the tensor's storage from here on, if it is not counted yet; a share of it where it is sharded.

        Raises:
            torch.OutOfMemoryError: more than `limit_bytes` are held with it.
        """
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._held:
            return
        size_bytes = -(-storage.nbytes() // (share or self.share))
        reference = weakref.ref(storage, lambda _: self.free(self._held.pop(address)[1]))
        self._held[address] = reference, self.allocate(size_bytes)
        self.check_limit(size_bytes)

    def shrink(self, tensor: Tensor, share: int) -> None:
        """A share of the tensor's storage takes its place."""
        storage = tensor.untyped_storage()
        reference, number = self._held[storage._cdata]
        size_bytes = rounded_bytes(-(-storage.nbytes() // share))
        if self._sizes_bytes[number] != size_bytes:
            self.free(number)
            self._held[storage._cdata] = reference, self.allocate(size_bytes)

    def allocate(self, size_bytes: int) -> int:
        """Holds bytes, rounded, and returns the number by which they are freed."""
        self._allocations += 1
        size_bytes = rounded_bytes(size_bytes)
        self._sizes_bytes[self._allocations] = size_bytes
        self._tape.append((self._allocations, size_bytes))
        self.live_bytes += size_bytes
        self.highest_bytes = max(self.highest_bytes, self.live_bytes)
        return self._allocations

    def free(self, number: int) -> None:
        """Ends an allocation."""
        self._tape.append((number, 0))
        self.live_bytes -= self._sizes_bytes.pop(number)

    def check_limit(self, size_bytes: int) -> None:
        """Raises torch.OutOfMemoryError if what is held since the latest allocation is too much."""
        if self.limit_bytes is not None and self.live_bytes > self.limit_bytes:
            raise torch.OutOfMemoryError(
                f"the simulated device is out of memory: {format_bytes(size_bytes)} more make "
                f"{format_bytes(self.live_bytes)} allocated, and there is room for {format_bytes(self.limit_bytes)}"
            )

    def begin_stretch(self) -> None:
        """From here on `highest_bytes` counts anew."""
        self.highest_bytes = self.live_bytes

    def begin_tape(self) -> None:
        """From here on `tape` is written anew; it begins with what is held."""
        self._tape = list(self._sizes_bytes.items())

    @property
    def tape(self) -> list[Event]:
        """Allocations and frees since `begin_tape`."""
        return self._tape
