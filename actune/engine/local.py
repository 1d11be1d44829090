"""The engine on one machine: a pool of worker processes, each kept between trials for as long as it is sound."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from actune.engine.cards import worker_environments
from actune.engine.group import WorkerGroup
from actune.engine.process import Worker, WorkerDiedError, WorkerProcess
from actune.engine.sameness import check_same
from actune.engine.turns import Turn, Turns
from actune.errors import ActuneError, DeviceMemoryError, PlanError, TargetError, UsageError
from actune.op_trace import LayersTraced, TraceLayers
from actune.records import (
    CompareGradients,
    Failed,
    GradientReport,
    Loaded,
    LoadTarget,
    Measured,
    Measurement,
    MeasurePlan,
    MeasureRounds,
    Outcome,
    Reply,
    Request,
    RoundsMeasured,
)
from actune.step_profile import PlanProfiled, ProfilePlan

TIMED_FROM_THE_START = (MeasureRounds, ProfilePlan, TraceLayers)
"""Requests that are timed as a whole, unlike a trial, whose peak comes first."""

_CLOSED = "the engine is closed, so no worker is started for what was still asked of it."


class LocalEngine:
    """Runs requests on workers of this machine. A worker that dies costs its request, never the study.

    A worker is a process, or the processes of one job (`LoadTarget.nproc_per_node`).
    """

    def __init__(
        self, target: LoadTarget, *, workers: int, timeout_s: float, log_folder: Path, cards: Sequence[str] = ()
    ) -> None:
        """Starts nothing yet.

        Args:
            target: what each worker loads first.
            workers: how many at most.
            timeout_s: of one request; loading counts as one.
            log_folder: for what workers print, and for tracebacks.
            cards: which of them workers get; all visible ones if none is named.

        Raises:
            UsageError: there are fewer cards than workers, or one that is named is not there.
        """
        self._target = target
        self._timeout_s = timeout_s
        self._log_folder = log_folder
        self._numbers = itertools.count(1)
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        # A worker that ends leaves its environment to the next one, so that no two share a card.
        self._environments: queue.LifoQueue[dict[str, str]] = queue.LifoQueue()
        environments = worker_environments(
            target.device, workers, os.environ, nproc_per_node=target.nproc_per_node, cards=cards
        )
        for environment in reversed(environments):
            self._environments.put(environment)
        self._free = threading.Semaphore(workers)  # as many as idle workers and environments together
        self._turns = Turns()
        # Cards are one worker's alone, and a simulated device has a clock of its own.
        self._share_a_processor = target.device == "cpu" and workers > 1
        self._first: Loaded | None = None
        self._alive: set[Worker] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="worker")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; requests that run are given up."""
        self._closed = True
        for worker in tuple(self._alive):
            worker.kill()
        self._alive.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def load(self) -> Loaded:
        """Loads the target in a worker, which then waits for the first trial.

        Raises:
            UsageError: what the target or the device names does not exist.
            TargetError: the target's code raised, hung or died.
        """
        self._free.acquire()
        with suppress(queue.Empty):  # one that has loaded it before makes room
            self._end(self._idle.get_nowait())
        with self._turns.request() as turn:
            worker, loaded = self._start_worker(turn)
        self._let_go(worker)
        return loaded

    def measure(self, request: MeasurePlan) -> Measurement:
        """Runs a trial; the worker's death is an outcome too.

        Raises:
            PlanError: the plan does not fit the model.
            TargetError: a new worker was needed and the target can't be loaded any more.
        """
        try:
            reply = self._ask(replace(request, waits_for_turn=self._share_a_processor))
        except WorkerDiedError as death:
            outcome = Outcome.CRASHED
            if death.timed_out:
                outcome = Outcome.TIMEOUT
            elif death.out_of_memory:
                outcome = Outcome.OOM
            return Measurement(outcome, message=death.message, detail=death.log_tail)
        if isinstance(reply, Measured):
            return reply.measurement
        failed = _expect_failed(reply)
        if failed.blame == "plan":
            raise PlanError(failed.message)
        outcome = Outcome.OOM if failed.blame == "oom" else Outcome.ERROR
        return Measurement(outcome, message=failed.message, detail=failed.detail)

    def submit(self, request: MeasurePlan) -> Future[Measurement]:
        """`measure` in the background."""
        return self._threads.submit(self.measure, request)

    def measure_rounds(self, request: MeasureRounds) -> RoundsMeasured:
        """Times plans side by side.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        reply = self._ask_or_raise(request, "timing the plans side by side")
        assert isinstance(reply, RoundsMeasured)
        return reply

    def compare_gradients(self, request: CompareGradients) -> GradientReport:
        """Compares loss and gradients of two plans.

        Raises:
            PlanError: a plan does not fit the model.
            TargetError: the worker died, or the target raised.
        """
        reply = self._ask_or_raise(request, "comparing gradients")
        assert isinstance(reply, GradientReport)
        return reply

    def profile(self, request: ProfilePlan) -> PlanProfiled:
        """Runs a few steps of a plan with marks at its layers.

        Raises:
            PlanError: the plan does not fit the model.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        reply = self._ask_or_raise(request, "profiling a plan")
        assert isinstance(reply, PlanProfiled)
        return reply

    def trace_layers(self, request: TraceLayers) -> LayersTraced:
        """Traces layers op by op in a few steps.

        Raises:
            PlanError: the plan does not fit the model, or gives a layer to trace some AC, or compiles.
            DeviceMemoryError: the plan needs more than the device has.
            TargetError: the worker died, or the target raised.
        """
        reply = self._ask_or_raise(request, "tracing layers")
        assert isinstance(reply, LayersTraced)
        return reply

    def _ask_or_raise(self, request: Request, doing: str) -> Reply:
        try:
            reply = self._ask(request)
        except WorkerDiedError as death:
            if death.out_of_memory:
                raise DeviceMemoryError(f"{doing}: {death.message}") from None
            raise self._target_error(f"{doing}: {death.message}", death.log_tail) from None
        if isinstance(reply, Failed):
            if reply.blame == "oom":
                raise DeviceMemoryError(f"{doing}: {reply.message}")
            if reply.blame == "plan":
                raise PlanError(reply.message)
            raise self._target_error(f"{doing}: {reply.message}", reply.detail)
        return reply

    def _ask(self, request: Request) -> Reply:
        self._free.acquire()
        with self._turns.request() as turn:
            worker = self._sound_idle_worker() or self._start_worker(turn)[0]
            try:
                if self._share_a_processor and isinstance(request, TIMED_FROM_THE_START):
                    turn.take()
                reply = worker.ask(request, timeout_s=self._timeout_s, take_turn=turn.take)
            except BaseException:
                self._retire(worker)
                raise
        spent = isinstance(reply, Measured) and reply.worker_spent
        # After an out-of-memory or an exception that no trial caught, what the worker still holds is unknown.
        if isinstance(reply, Failed):
            spent = reply.worker_spent or reply.blame != "plan"
        if spent or not worker.is_alive:
            self._retire(worker)
        else:
            self._let_go(worker)
        return reply

    def _sound_idle_worker(self) -> Worker | None:
        """One that waits for a request; not one that died while it waited, which would cost the request."""
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return None
            if worker.is_alive:
                return worker
            self._end(worker)

    def _start_worker(self, turn: Turn) -> tuple[Worker, Loaded]:
        environment = self._environments.get_nowait()
        number, nproc = next(self._numbers), self._target.nproc_per_node
        worker: Worker
        try:
            if self._closed:
                raise ActuneError(_CLOSED)
            if nproc == 1:
                worker = WorkerProcess(self._log_folder / f"worker-{number}.log", environment)
            else:
                worker = WorkerGroup(self._log_folder, number, nproc, environment)
        except BaseException:
            self._environments.put(environment)
            self._free.release()
            raise
        self._alive.add(worker)
        try:
            if self._closed:  # since it was looked at above: then nobody else ends this one
                raise ActuneError(_CLOSED)
            reply = worker.ask(self._target, timeout_s=self._timeout_s, take_turn=turn.take)
        except WorkerDiedError as death:
            self._retire(worker)
            doing = f"target '{self._target.spec}' can't be loaded"
            raise self._target_error(f"{doing}: {death.message}", death.log_tail) from None
        except BaseException:
            self._retire(worker)
            raise
        if isinstance(reply, Loaded):
            try:
                check_same(self._first or reply, reply, where=f"worker {number}")
            except ActuneError:
                self._retire(worker)
                raise
            self._first = self._first or reply
            return worker, reply
        self._retire(worker)
        failed = _expect_failed(reply)
        if failed.blame == "usage":
            raise UsageError(failed.message)
        if failed.blame == "oom":
            raise DeviceMemoryError(
                f"target '{self._target.spec}' does not fit on {self._target.device} even before a first step: "
                f"{failed.message.rstrip('.')}. Take fewer layers (?layers=N), a larger device, or, for a simulated "
                "one, shard it by --world-size."
            )
        raise self._target_error(failed.message, failed.detail)

    def _retire(self, worker: Worker) -> None:
        self._end(worker)
        self._free.release()

    def _end(self, worker: Worker) -> None:
        worker.kill()
        self._alive.discard(worker)
        self._environments.put(worker.environment)

    def _let_go(self, worker: Worker) -> None:
        self._idle.put(worker)
        self._free.release()

    def _target_error(self, message: str, detail: str) -> TargetError:
        return target_error(message, detail, log_folder=self._log_folder)


def target_error(message: str, detail: str | None, *, log_folder: Path) -> TargetError:
    """The error for a target at fault, its traceback or last output kept in a file that the message names."""
    if not detail:
        return TargetError(message)
    path = log_folder / "target-error.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(detail, encoding="utf-8", errors="replace")
    except OSError as error:
        return TargetError(f"{message.rstrip('.')}. The traceback can't be kept in {path}: {error.strerror}")
    return TargetError(f"{message.rstrip('.')}. The traceback or last output is in {path}", traceback_path=path)


def _expect_failed(reply: Reply) -> Failed:
    if not isinstance(reply, Failed):
        raise ActuneError(f"the worker answered with '{reply.kind}', which was not asked for. This is a bug in actune.")
    return reply
