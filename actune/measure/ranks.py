"""The processes that train one model together: who this one is, and how all of them come to the same decisions.

What the ranks of a job do next must not depend on what one of them measured: one that stops earlier than the others
leaves them waiting in a collective for ever. So each number that decides something is agreed upon first.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch._C import _distributed_c10d as stores

from actune.errors import UsageError
from actune.records import RENDEZVOUS, StepSample
from actune.targets import BoundTarget

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

NO_LIMIT = timedelta(days=30)
"""Of a collective: it is the engine that times a request out, and then ends all ranks at once."""

RENDEZVOUS_LIMIT = timedelta(minutes=10)


class Ranks:
    """The ranks of a job, as one of them sees them. One process alone has nobody to agree with.

    Attributes:
        rank: this one's number, from 0.
        world_size: how many ranks the model is distributed over.
        are_fake: the others do not exist: collectives take no time and bring garbage.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, *, are_fake: bool = False, store: Store | None = None
    ) -> None:
        """Args:
        rank: this one's number.
        world_size: how many there are.
        are_fake: whether the others do not exist.
        store: what the ranks share; None for one process.
        """
        self.rank = rank
        self.world_size = world_size
        self.are_fake = are_fake
        self._store = store
        self._exchanges = 0

    @property
    def label(self) -> str:
        """What to add to a device's name, so that measurements of other sizes are never compared; empty for one."""
        if self.world_size == 1:
            return ""
        return f"one of {self.world_size}, the others faked" if self.are_fake else f"{self.world_size} processes"

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks.

        Through the store and not by a collective, which would make tensors, in the middle of what is measured.
        """
        if self._store is None:
            return [value]
        self._exchanges += 1
        self._store.set(self._key(self._exchanges, self.rank), pickle.dumps(value))  # type: ignore[arg-type]
        values: list[T] = [
            _Values(io.BytesIO(self._store.get(self._key(self._exchanges, rank)))).load()
            for rank in range(self.world_size)
        ]
        # Whoever has come to this exchange has read all of the one before.
        self._store.delete_key(self._key(self._exchanges - 1, self.rank))
        return values

    @staticmethod
    def _key(exchange: int, rank: int) -> str:
        return f"actune/{exchange}/{rank}"

    def worst(self, value: T, key: Callable[[T], float]) -> T:
        """The value of the rank whose key is the highest; of the first of them if several have it."""
        return max(self.gather(value), key=key)

    def agree_max(self, value: float) -> float:
        """The highest of all ranks' values."""
        return max(self.gather(value))

    def slowest(self, sample: StepSample) -> StepSample:
        """A step as it is for the job: as long as it took the slowest rank."""
        samples = self.gather(sample)
        return StepSample(max(s.step_time_s for s in samples), max(s.process_s for s in samples))

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.gather(None)


class _Values(pickle.Unpickler):
    """Reads plain values and actune's own alone: who reaches the store's port is not to run code by its content."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of a value of actune's.

        Raises:
            UnpicklingError: it is anything else.
        """
        found = getattr(sys.modules.get(module), name, None) if module.startswith("actune.") else None
        if not (isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum | tuple))):
            raise pickle.UnpicklingError(f"{module}.{name} is no value that ranks exchange")
        return found


ALONE = Ranks()


def join_ranks(target: BoundTarget, device_type: str, *, world_size: int) -> Ranks:
    """Makes this process a rank of the job that its engine has started, and torch's default process group with it.

    A target with `parallelize` has a process group in any case, of one rank if there is one process.

    Args:
        target: what is trained.
        device_type: `cpu` or `cuda`.
        world_size: of a job of which this is the only rank that exists; 1 if all do.

    Raises:
        UsageError: there are several ranks, and the target has no `parallelize`.
    """
    folder = os.environ.get(RENDEZVOUS)
    processes = int(os.environ["WORLD_SIZE"]) if folder is not None else 1
    if max(processes, world_size) == 1 and not target.has_parallelize:
        return ALONE
    if not target.can_parallelize:
        raise UsageError(
            f"target '{target.name}' has no parallelize(), so each of {max(processes, world_size)} processes would "
            "train a model of its own. Give the target a method parallelize(model) that applies FSDP2 or tensor "
            "parallelism, or leave --nproc-per-node and --world-size out."
        )
    if world_size > 1:
        return _fake_ranks(world_size)
    if folder is None:
        return _one_rank(device_type)
    return _ranks_of_job(folder, processes, device_type)


def local_of(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: a DTensor's local shard, without a gradient; any other tensor itself."""
    distributed = sys.modules.get("torch.distributed.tensor")  # where nobody has imported it, there are no DTensors
    if distributed is None or not isinstance(tensor, distributed.DTensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def _backend(device_type: str) -> str:
    return "gloo" if device_type == "cpu" else f"cpu:gloo,{device_type}:nccl"


def _one_rank(device_type: str) -> Ranks:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    store = stores.HashStore()
    torch.distributed.init_process_group(_backend(device_type), store=store, rank=0, world_size=1)
    return Ranks()


def _fake_ranks(world_size: int) -> Ranks:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    return Ranks(world_size=world_size, are_fake=True)


def _ranks_of_job(folder: str, world_size: int, device_type: str) -> Ranks:
    """The ranks meet in a TCPStore on a port that the system gives rank 0: nothing can take it before it is used.

    A file says which port it is. `MASTER_PORT` is that store's, and TORCHELASTIC_USE_AGENT_STORE says so, as torchrun's
    agent does: a target that asks for `env://` itself becomes a client of it.
    """
    rank = int(os.environ["RANK"])
    ports = stores.FileStore(os.path.join(folder, "port"), world_size)
    ports.set_timeout(RENDEZVOUS_LIMIT)
    address = os.environ["MASTER_ADDR"]
    if rank == 0:
        store = stores.TCPStore(address, 0, world_size, is_master=True, wait_for_workers=False)
        ports.set("port", str(store.port))
    else:
        port = int(ports.get("port"))
        store = stores.TCPStore(address, port, world_size, is_master=False, timeout=RENDEZVOUS_LIMIT)
    os.environ.update(MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.distributed.init_process_group(
        _backend(device_type),
        store=stores.PrefixStore("actune", store),
        rank=rank,
        world_size=world_size,
        timeout=NO_LIMIT,
    )
    store.set_timeout(NO_LIMIT)
    return Ranks(rank, world_size, store=store)
