"""What a trial's end by an exception means: a plan over the budget, memory that ran out, or an error."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import CheckpointError

from actune.errors import ActuneError, describe_error
from actune.measure.workload import Workload
from actune.records import Measurement, Outcome


@dataclass(eq=False)
class TrialEndedError(Exception):
    """A step raised, and what that means for the trial is known."""

    measurement: Measurement


def failed_measurement(error: Exception, *, budget_bytes: int | None, workload: Workload) -> Measurement:
    """The outcome of a trial that raised: out of memory (over budget, if the device has more), or an error."""
    if isinstance(error, TrialEndedError):
        return error.measurement
    message = str(error) if isinstance(error, ActuneError) else describe_error(error)
    if isinstance(error, CheckpointError):
        message += (
            " (a region does not repeat its forward: a mixture routes tokens anew unless save_routing = true finds its "
            "router; else look for what changes between two calls of the model)"
        )
    if not is_out_of_memory(error):
        return Measurement(Outcome.ERROR, message=message, detail=traceback.format_exc())
    if is_capped(workload, budget_bytes):
        return Measurement(Outcome.OVER_BUDGET, message=f"needs more than the device has: {message}")
    return Measurement(Outcome.OOM, message=message)


def is_capped(workload: Workload, budget_bytes: int | None) -> bool:
    """Whether the device refuses what is over the budget, before it has no more itself."""
    total_bytes = workload.device.environment().device_total_bytes
    return budget_bytes is not None and total_bytes is not None and budget_bytes < total_bytes


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    # Outside of the caching allocator, by the card's own libraries:
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: in an allocator of PyTorch's, in Python, or in a library, as a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )
