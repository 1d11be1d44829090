"""Measuring: peaks, step times and gradients of plans on a device."""

from actune.measure.device import Device, open_device
from actune.measure.failures import is_out_of_memory
from actune.measure.gradients import compare_gradients
from actune.measure.profiling import profile_plan
from actune.measure.rounds import measure_rounds
from actune.measure.tracing import trace_layers
from actune.measure.trial import measure_plan
from actune.measure.workload import Workload

__all__ = [
    "Device",
    "Workload",
    "compare_gradients",
    "is_out_of_memory",
    "measure_plan",
    "measure_rounds",
    "open_device",
    "profile_plan",
    "trace_layers",
]
