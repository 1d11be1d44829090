"""What a task does on its node: the engine of one machine runs a worker for one request, and ends it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from actune import __version__
from actune.boundary import from_json, to_json
from actune.engine.cards import ALLOCATOR, OLD_ALLOCATOR
from actune.engine.local import LocalEngine
from actune.engine.on_ray.messages import Answer, Ended, Job, Problem, Started
from actune.errors import ActuneError, DeviceMemoryError, PlanError, TargetError, UsageError
from actune.op_trace import TraceLayers
from actune.records import CompareGradients, Loaded, LoadTarget, Measured, MeasurePlan, MeasureRounds, Request
from actune.step_profile import ProfilePlan

CARRIED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", ALLOCATOR, OLD_ALLOCATOR)
"""Variables that measurements depend on: all nodes have the coordinator's. Ray sets the first one to a task's CPUs."""

LOG_BYTES = 2**20
"""So much of the end of what a worker printed goes to the coordinator."""

POLL_S = 0.2


class VersionError(Exception):
    """The node has another actune."""


def node_name(node_id: str) -> str:
    """A node in messages: its host's name, and the start of its id, as hosts may share a name."""
    return f"{socket.gethostname()} ({node_id[:8]})"


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `CARRIED` that are set."""
    return {name: environment[name] for name in CARRIED if name in environment}


def run_job(line: str, version: str, node: str) -> Iterator[str]:
    """Says `Started`, runs a job, and says how it `Ended`, in JSON.

    Args:
        line: the Job.
        version: of the coordinator's actune, whose messages another one may not understand.
        node: this node in messages.

    Raises:
        VersionError: this is another version.
        KeyboardInterrupt: as Ray cancels a task; the worker is gone by then.
    """
    if version != __version__:
        raise VersionError(f"node {node} has actune {__version__}, and the coordinator {version}")
    job: Job = from_json(Job, line)
    yield to_json(Started(node))
    yield to_json(_run(job, node))


def _run(job: Job, node: str) -> Ended:
    for name in CARRIED:
        os.environ.pop(name, None)
    os.environ.update(job.environment)
    lacks_folder = False
    if job.folder is not None:
        try:
            os.chdir(job.folder)
        except OSError:
            lacks_folder = True
    with tempfile.TemporaryDirectory(prefix="actune-ray-") as name:
        folder = Path(name)
        loaded, answer, problem = _carried_out(job, folder)
        if problem is not None and problem.blame == "usage" and lacks_folder:
            hint = f"This node has no folder {job.folder}, by which the target's relative path may be meant"
            problem = replace(problem, message=f"{problem.message.rstrip('.')}. {hint}.")
        return Ended(node, loaded, answer, problem, _logs(folder))


def _carried_out(job: Job, folder: Path) -> tuple[Loaded | None, Answer | None, Problem | None]:
    # Ray cancels by an interrupt that wakes no wait for a lock: so another thread waits, and this one looks often.
    # The engine is closed first, which ends what the thread waits for.
    with (
        ThreadPoolExecutor(max_workers=1) as thread,
        LocalEngine(job.load, workers=1, timeout_s=job.timeout_s, log_folder=folder) as engine,
    ):
        loading = thread.submit(engine.load)
        loaded = None
        try:
            while not wait([loading], timeout=POLL_S).done:
                pass
            loaded = loading.result()
            if job.request is None:
                return loaded, None, None
            answering = thread.submit(_answer, engine, job.request)
            while not wait([answering], timeout=POLL_S).done:
                pass
            return loaded, answering.result(), None
        except ActuneError as error:
            return loaded, None, _problem(error)


def _answer(engine: LocalEngine, request: Request) -> Answer:
    match request:
        case MeasurePlan():
            return Measured(engine.measure(request))
        case MeasureRounds():
            return engine.measure_rounds(request)
        case CompareGradients():
            return engine.compare_gradients(request)
        case ProfilePlan():
            return engine.profile(request)
        case TraceLayers():
            return engine.trace_layers(request)
        case LoadTarget():
            raise ValueError("a job loads its target anyway")


def _problem(error: ActuneError) -> Problem:
    if isinstance(error, PlanError):
        return Problem("plan", str(error))
    if isinstance(error, UsageError):
        return Problem("usage", str(error))
    if isinstance(error, DeviceMemoryError):
        return Problem("memory", str(error))
    if not isinstance(error, TargetError):
        return Problem("other", str(error))
    detail = None
    if error.traceback_path is not None:
        detail = error.traceback_path.read_text(encoding="utf-8")
    return Problem("target", _without_path(str(error), error.traceback_path), detail)


def _without_path(message: str, path: Path | None) -> str:
    """A TargetError's message without its last sentence, which names a file of this node."""
    return message if path is None else message.removesuffix(f"The traceback or last output is in {path}").rstrip()


def _logs(folder: Path) -> dict[str, str]:
    logs = {}
    for path in sorted(folder.glob("*.log")):
        with suppress(OSError), path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_BYTES))
            logs[path.name] = log.read().decode(errors="replace")
    return logs
