"""What the search asks of an engine, wherever its workers run."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from actune.op_trace import LayersTraced, TraceLayers
from actune.records import (
    CompareGradients,
    GradientReport,
    Loaded,
    LoadTarget,
    Measurement,
    MeasurePlan,
    MeasureRounds,
    RoundsMeasured,
)
from actune.step_profile import PlanProfiled, ProfilePlan


class Engine(Protocol):
    """Runs requests on workers. A worker that dies costs its request, never the study."""

    def __enter__(self) -> Self:
        """Itself; leaving the block closes it."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        ...

    def close(self) -> None:
        """Ends all workers; requests that run are given up."""
        ...

    def load(self) -> Loaded:
        """Loads the target in a worker.

        Raises:
            UsageError: what the target or the device names does not exist.
            TargetError: the target's code raised, hung or died.
        """
        ...

    def measure(self, request: MeasurePlan) -> Measurement:
        """Runs a trial; the worker's death is an outcome too.

        Raises:
            PlanError: the plan does not fit the model.
            TargetError: a new worker was needed and the target can't be loaded any more.
        """
        ...

    def submit(self, request: MeasurePlan) -> Future[Measurement]:
        """`measure` in the background."""
        ...

    def measure_rounds(self, request: MeasureRounds) -> RoundsMeasured:
        """Times plans side by side.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        ...

    def compare_gradients(self, request: CompareGradients) -> GradientReport:
        """Compares loss and gradients of two plans.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        ...

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        """Runs a few steps of a plan with marks at its layers.

        Raises:
            PlanError: the plan does not fit the model.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        ...

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        """Traces layers op by op in a few steps.

        Raises:
            PlanError: the plan does not fit the model, or gives a layer to trace some AC, or compiles.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        ...


class EngineFactory(Protocol):
    """Makes an engine for a target, such as the class LocalEngine does."""

    def __call__(self, target: LoadTarget, /, *, workers: int, timeout_s: float, log_folder: Path) -> Engine:
        """An engine that has started nothing yet.

        Args:
            target: what each worker loads first.
            workers: how many at most.
            timeout_s: of one request; loading counts as one.
            log_folder: for what workers print, and for tracebacks.
        """
        ...
