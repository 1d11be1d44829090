"""The process that is connected to Ray: commands as lines of JSON on stdin, events on what was stdout.

The home of ray. It is a process of its own because Ray prints what happens on nodes to its driver's stdout, handles
SIGTERM there, and ends it where the head node is lost (`listen_error_messages` and `init` in ray/_private/worker.py):
none of that may befall the process that has the database open. It ends when its stdin does.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import ray
import ray.exceptions

from actune.boundary import from_json, to_json
from actune.engine.on_ray.messages import Connect, Connected, Ended, Event, Lost, Refused, Started, Submit
from actune.engine.on_ray.placement import Node, Share, described, listed, nodes_alive, share_of
from actune.engine.on_ray.task import node_name, run_job
from actune.errors import ActuneError, UsageError, describe_error

WATCH_S = 2.0
PATIENCE_S = 600.0
"""So long no node that can run a request may be there, while one is waiting: a preempted one may be replaced."""
MARGIN_S = 60.0
"""A task gets so much more than its two caps before it counts as hanging: its node ends a worker that does, itself."""
CANCEL_S = 20.0
KILL_S = 5.0
REACH_S = 10.0


def run_on_node(line: str, version: str) -> Iterator[str]:
    """The remote function."""
    yield from run_job(line, version, node_name(ray.get_runtime_context().get_node_id()))


@dataclass(eq=False)
class _Call:
    number: int
    timeout_s: float
    refs: Any
    submitted_s: float
    started_s: float | None = None
    node: str | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Driver:
    """Runs jobs as tasks, and tells what becomes of them."""

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._writing = threading.Lock()
        self._finishing = threading.Lock()
        self._calls: list[_Call] = []
        self._share = Share(cpus=1, gpus=0)
        self._function: Any = None
        self._capable_s = time.monotonic()
        self._closing = threading.Event()

    def say(self, message: Connected | Refused | Event) -> None:
        """Writes a line."""
        with self._writing:
            self._replies.write(to_json(message).encode() + b"\n")
            self._replies.flush()

    def connect(self, command: Connect) -> None:
        """Connects to a cluster that runs. None is started: a search that was to use many machines would use one.

        Raises:
            UsageError: there is none, or none that can run the target.
        """
        address = command.address or os.environ.get("RAY_ADDRESS") or "auto"
        if "://" in address or address == "local":
            raise UsageError(
                f"the Ray address {address} is not that of a cluster which this machine is a node of. Run actune on a "
                "node, such as the head, and give --address HOST:PORT, the port being 6379 as a rule, or none."
            )
        if address != "auto":
            _reach(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UsageError(
                f"there is no Ray cluster to connect to ({describe_error(error)}). Start one by `ray start --head` on "
                "one machine and `ray start --address HOST:6379` on the others, and give --address HOST:6379 if this "
                "machine is none of them; or leave --engine ray out."
            ) from None
        except (RuntimeError, ValueError) as error:  # other versions of Ray or Python, or an address that is none
            raise UsageError(f"the Ray cluster at {address} can't be used: {describe_error(error)}") from None
        self._share = share_of(command.target, nodes_alive(_nodes()))
        # A gang of N processes is one task with N cards: Ray gives them all on one node, or none. A placement group
        # would be two steps for the same, and something to take away again after a coordinator that died.
        self._function = ray.remote(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            max_calls=1,
            max_retries=0,
            retry_exceptions=False,
            num_returns="streaming",
        )(run_on_node)
        # Ray has taken it over. Batch systems send it to all processes; the coordinator says when this one ends.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._watching = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watching.start()

    def submit(self, command: Submit) -> None:
        """Has Ray run a job, now or once a node is free."""
        job = command.job
        if ray.get_runtime_context().runtime_env.get("working_dir"):
            job = replace(job, folder=None)  # Ray has put the task into a copy of that folder
        refs = self._function.remote(to_json(job), job.version)
        call = _Call(command.number, job.timeout_s, refs, time.monotonic())
        self._calls = [*(other for other in self._calls if not other.over.is_set()), call]
        threading.Thread(target=self._follow, args=(call,), name=f"task-{call.number}", daemon=True).start()

    def close(self) -> None:
        """Cancels what runs, and waits until its workers are gone."""
        self._closing.set()
        self._watching.join()
        calls = [call for call in self._calls if not call.over.is_set()]
        for call in calls:
            ray.cancel(call.refs)  # the task ends its worker, and then itself
        end_s = time.monotonic() + CANCEL_S
        for call in calls:
            call.over.wait(max(0.0, end_s - time.monotonic()))
        stuck = [call for call in calls if not call.over.is_set()]
        for call in stuck:
            ray.cancel(call.refs, force=True)  # its worker ends as its pipe does
        for call in stuck:
            call.over.wait(KILL_S)
        ray.shutdown()

    def _follow(self, call: _Call) -> None:
        try:
            for ref in call.refs:
                message: Started | Ended = from_json(Started | Ended, ray.get(ref))
                if isinstance(message, Started):
                    call.node, call.started_s = message.node, time.monotonic()
                else:
                    self._finish(call, message)
        except Exception as error:
            traceback.print_exc()
            self._finish(call, lost(error, call.node))

    def _finish(self, call: _Call, what: Ended | Lost) -> None:
        with self._finishing:
            if call.over.is_set():
                return
            call.over.set()
        self.say(Event(call.number, what))

    def _watch(self) -> None:
        """Looks after what would not end by itself: a task that hangs, and one that no node can run."""
        while not self._closing.wait(WATCH_S):
            try:
                self._look(time.monotonic(), nodes_alive(_nodes()))
            except Exception:  # what Ray raises while the head node is away; the next look may tell more
                traceback.print_exc()

    def _look(self, now_s: float, nodes: Sequence[Node]) -> None:
        if any(self._share.fits(node) for node in nodes):
            self._capable_s = now_s
        for call in [call for call in self._calls if not call.over.is_set()]:
            if call.started_s is not None:
                # Loading and the request have a cap each, and the node ends a worker that is over it.
                limit_s = 2 * call.timeout_s + MARGIN_S
                if now_s - call.started_s > limit_s:
                    ray.cancel(call.refs, force=True)
                    why = f"node {call.node}: the task has not ended within {limit_s:g} s, so the node hangs"
                    self._finish(call, Lost("timeout", why))
            elif now_s - max(self._capable_s, call.submitted_s) > PATIENCE_S:
                ray.cancel(call.refs)
                why = f"{described(self._share)} any more, for {PATIENCE_S:g} s. {listed(nodes)}"
                self._finish(call, Lost("unplaceable", why))


def lost(error: Exception, node: str | None) -> Lost:
    """What it means that a task ended with this error of Ray's.

    Args:
        error: what `ray.get` raised.
        node: where the task ran; None if it had not begun.
    """
    address = getattr(error, "ip", None)
    where = f"node {node or address}" if node or address else "a node"
    if isinstance(error, ray.exceptions.TaskCancelledError):
        return Lost("closed", f"{where}: given up, as the engine was closed")
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Lost("oom", f"{where}: Ray ended the task, as the node ran out of memory")
    if isinstance(error, ray.exceptions.NodeDiedError):
        return Lost("crashed", f"{where} died or was taken away")
    if isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.RuntimeEnvSetupError):
        cause = getattr(error, "cause", None) or error
        return Lost("broken", f"{where} can't run actune's part of a task: {describe_error(cause)}")
    if isinstance(error, ray.exceptions.TaskUnschedulableError):
        return Lost("unplaceable", describe_error(error))
    if isinstance(error, ray.exceptions.RayError):
        return Lost("crashed", f"{where}: the Ray worker died ({type(error).__name__})")
    return Lost("broken", f"{where}: {describe_error(error)}")


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # it has no annotations
    return nodes


def _reach(address: str) -> None:
    """Raises UsageError if nothing answers there, which Ray would take a minute to say."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--address {address}: expected HOST:PORT, such as 10.0.0.5:6379, or auto.")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"nothing answers at the Ray address {address} ({describe_error(error)}). Is the head node up, and is that "
            "the port of its GCS (6379, unless `ray start --head --port` says otherwise)?"
        ) from None


def main() -> None:
    """Connects, and runs what it is told to until its stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    driver = Driver(replies)
    commands = sys.stdin.buffer
    try:
        driver.connect(from_json(Connect, commands.readline()))
    except ActuneError as error:
        driver.say(Refused(str(error)))
        return
    driver.say(Connected())
    for line in commands:
        driver.submit(from_json(Submit, line))
    driver.close()
