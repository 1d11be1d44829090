"""The engine on many machines: each request is a Ray task, which runs a worker of its own on a node."""

from __future__ import annotations

import importlib.util
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from actune import __version__
from actune.engine.local import target_error
from actune.engine.on_ray.bridge import Bridge
from actune.engine.on_ray.messages import Answer, Connect, Ended, Job, Lost, Problem
from actune.engine.on_ray.placement import check_device
from actune.engine.on_ray.task import carried
from actune.engine.sameness import check_same
from actune.errors import ActuneError, DeviceMemoryError, PlanError, UsageError
from actune.op_trace import LayersTraced, TraceLayers
from actune.records import (
    CompareGradients,
    GradientReport,
    Loaded,
    LoadTarget,
    Measured,
    Measurement,
    MeasurePlan,
    MeasureRounds,
    Outcome,
    Request,
    RoundsMeasured,
)
from actune.step_profile import PlanProfiled, ProfilePlan

ATTEMPTS = 2
"""So often a request that is no trial is run if its node dies: it has no outcome that could be told."""

_CLOSED = "the engine is closed, so nothing that was still asked of it is run."
_A = TypeVar("_A", bound=Answer)


class _LostError(Exception):
    """A task did not come to its end, which is the outcome of a trial."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(lost.message)
        self.lost = lost


class RayEngine:
    """Runs requests as tasks of a Ray cluster. A worker or a node that dies costs its request, never the study."""

    def __init__(
        self, target: LoadTarget, *, workers: int, timeout_s: float, log_folder: Path, address: str | None = None
    ) -> None:
        """Connects to nothing yet.

        Args:
            target: what each worker loads first. What it names has to be there on each node.
            workers: how many requests run at once at most.
            timeout_s: of one request; loading counts as one, waiting for a node as nothing.
            log_folder: for what workers, Ray and tracebacks say.
            address: of the cluster; None for what RAY_ADDRESS says, or else the one that this machine is a node of.

        Raises:
            UsageError: Ray is not installed, or the device names a card.
        """
        check_ray(target.device)
        self._target = target
        self._timeout_s = timeout_s
        self._log_folder = log_folder
        self._address = address
        self._free = threading.Semaphore(workers)
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="task")
        self._lock = threading.Lock()
        self._bridge: Bridge | None = None
        self._first: Loaded | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancels all tasks, waits until their workers are gone, and disconnects; requests that run are given up."""
        self._closed = True
        with self._lock:
            bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def load(self) -> Loaded:
        """Loads the target on a node.

        Raises:
            UsageError: what the target or the device names does not exist on the node, or there is no such cluster.
            TargetError: the target's code raised, hung or died.
        """
        ended = self._ended_or_raise(None, f"loading target '{self._target.spec}'")
        assert ended.loaded is not None
        return ended.loaded

    def measure(self, request: MeasurePlan) -> Measurement:
        """Runs a trial; the death of its worker or its node is an outcome too.

        Raises:
            PlanError: the plan does not fit the model.
            UsageError: the node is of another kind than the first one, or lacks what the target names.
            TargetError: the target can't be loaded any more.
        """
        try:
            ended = self._ended(request)
        except _LostError as error:
            outcomes = {"oom": Outcome.OOM, "timeout": Outcome.TIMEOUT}
            return Measurement(outcomes.get(error.lost.cause, Outcome.CRASHED), message=error.lost.message)
        return _answer_of(ended, Measured).measurement

    def submit(self, request: MeasurePlan) -> Future[Measurement]:
        """`measure` in the background."""
        return self._threads.submit(self.measure, request)

    def measure_rounds(self, request: MeasureRounds) -> RoundsMeasured:
        """Times plans side by side, on one node.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        return _answer_of(self._ended_or_raise(request, "timing the plans side by side"), RoundsMeasured)

    def compare_gradients(self, request: CompareGradients) -> GradientReport:
        """Compares loss and gradients of two plans.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        return _answer_of(self._ended_or_raise(request, "comparing gradients"), GradientReport)

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        """Runs a few steps of a plan with marks at its layers.

        Raises:
            PlanError: the plan does not fit the model.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        return _answer_of(self._ended_or_raise(request, "profiling a plan"), PlanProfiled)

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        """Traces layers op by op in a few steps.

        Raises:
            PlanError: the plan does not fit the model, or gives a layer to trace some AC, or compiles.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        return _answer_of(self._ended_or_raise(request, "tracing layers"), LayersTraced)

    def _ended_or_raise(self, request: Request | None, doing: str) -> Ended:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._ended(request)
            except _LostError as error:
                lost = error.lost
            if lost.cause == "oom":
                raise DeviceMemoryError(f"{doing}: {lost.message}")
            if lost.cause == "closed":
                raise ActuneError(_CLOSED)
            if lost.cause == "timeout" or attempt == ATTEMPTS:
                break
        raise target_error(f"{doing}: {lost.message}", None, log_folder=self._log_folder)

    def _ended(self, request: Request | None) -> Ended:
        """The end of a task without any problem.

        Raises:
            _LostError: it did not come to its end.
            ActuneError: what LocalEngine would have raised on the node; or a node can't run it, or is of another kind.
        """
        with self._free:
            job = Job(self._target, request, self._timeout_s, os.getcwd(), carried(os.environ), __version__)
            number, ending = self._connected().submit(job)
            ended = ending.result()
        if isinstance(ended, Lost):
            if ended.cause in ("unplaceable", "broken"):
                raise ActuneError(f"{ended.message.rstrip('.')}. What was measured is stored; `actune resume` goes on.")
            raise _LostError(ended)
        self._keep_logs(number, ended)
        if ended.loaded is not None:
            with self._lock:
                first = self._first = self._first or ended.loaded
            check_same(first, ended.loaded, where=f"node {ended.node}")
        if ended.problem is not None:
            raise self._error(ended.problem, ended.node)
        return ended

    def _connected(self) -> Bridge:
        with self._lock:
            if self._closed:
                raise ActuneError(_CLOSED)
            if self._bridge is None:
                self._bridge = Bridge(Connect(self._address, self._target), self._log_folder / "ray.log")
            return self._bridge

    def _error(self, problem: Problem, node: str) -> ActuneError:
        if problem.blame == "plan":
            return PlanError(problem.message)
        message = f"node {node}: {problem.message}"
        if problem.blame == "usage":
            if self._first is None:
                return UsageError(message)
            return UsageError(
                f"{message.rstrip('.')}. It was there at first: what a target names has to be at the same path on each "
                "node, or in the working_dir of Ray's runtime environment."
            )
        if problem.blame == "memory":
            return DeviceMemoryError(message)
        if problem.blame == "target":
            return target_error(message, problem.detail, log_folder=self._log_folder)
        return ActuneError(message)

    def _keep_logs(self, number: int, ended: Ended) -> None:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        for name, text in ended.logs.items():
            # On its node each worker is the first one.
            path = self._log_folder / name.replace("worker-1", f"worker-{number}", 1)
            # A study that goes on counts from 1 again.
            with path.open("a", encoding="utf-8", errors="replace") as log:
                log.write(f"node {ended.node}\n{text}\n")


def check_ray(device: str) -> None:
    """Checks what can be known without a cluster.

    Raises:
        UsageError: Ray is not installed, or the device names a card.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray, which is not installed: pip install 'actune[ray]', on each node.")
    check_device(device)


def _answer_of(ended: Ended, kind: type[_A]) -> _A:
    assert isinstance(ended.answer, kind)
    return ended.answer
