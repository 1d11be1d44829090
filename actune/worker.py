"""`python -m actune.worker`: one request per line of JSON on stdin, one reply per line on what was stdout.

The target's own prints go to stderr, which the engine keeps in a log. The process ends when its stdin does, in the
middle of a step too, and takes what the target started with it: a coordinator that was killed leaves nothing behind.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from actune import stragglers
from actune.boundary import from_json, shorten, to_json
from actune.errors import PlanError, TargetError, UsageError, describe_error
from actune.op_trace import TraceLayers
from actune.records import (
    AwaitsTurn,
    CompareGradients,
    Failed,
    Loaded,
    LoadTarget,
    MeasurePlan,
    MeasureRounds,
    Reply,
    ReplyLine,
    Request,
    TakeTurn,
    TargetInfo,
)
from actune.step_profile import ProfilePlan

if TYPE_CHECKING:
    from actune.measure import Workload


class ProtocolError(BaseException):
    """The coordinator said what can't be said now. No target's handler catches it: the process ends."""


class Worker:
    """Carries requests out on the target that the first of them loads."""

    def __init__(self, take_turn: Callable[[], None]) -> None:
        """Args: take_turn: waits until nothing else runs on a processor that is shared."""
        self._take_turn = take_turn
        self._workload: Workload | None = None

    def answer(self, request: Request) -> Reply:
        """The reply; what goes wrong is a reply too, with whom to blame."""
        # torch takes seconds to import, and only once the pipes are set up can a failure of that be told.
        from actune.measure import is_out_of_memory

        try:
            return self._carry_out(request)
        except PlanError as error:
            spent = self._workload is not None and self._workload.is_spent
            return Failed("plan", str(error), worker_spent=spent)
        except UsageError as error:
            return Failed("usage", str(error))
        except TargetError as error:
            return Failed("target", str(error), traceback.format_exc())
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # a target's sys.exit() is for it to explain
            message = describe_error(error)
            if is_out_of_memory(error):
                return Failed("oom", message)
            return Failed("target", message, traceback.format_exc())

    def _carry_out(self, request: Request) -> Reply:
        from actune.measure import (
            Workload,
            compare_gradients,
            measure_plan,
            measure_rounds,
            open_device,
            profile_plan,
            trace_layers,
        )

        if isinstance(request, LoadTarget):
            device = open_device(request.device, world_size=request.world_size)
            # Live bytes are counted over all objects that the collector knows: not over the libraries' every time.
            gc.collect()
            gc.freeze()
            workload = self._workload = Workload(request.spec, device, seed=request.seed, world_size=request.world_size)
            info = TargetInfo(
                spec=request.spec,
                fingerprint=workload.fingerprint,
                structure=workload.structure,
                parameter_bytes=workload.parameter_bytes,
                static_bytes=round(workload.ranks.agree_max(device.live_bytes(workload.bookkeeping))),
            )
            return Loaded(info, workload.environment)
        if self._workload is None:
            return Failed("internal", f"'{request.kind}' came before 'load'")
        match request:
            case MeasurePlan():
                return measure_plan(self._workload, request, self._take_turn)
            case MeasureRounds():
                return measure_rounds(self._workload, request)
            case CompareGradients():
                return compare_gradients(self._workload, request)
            case ProfilePlan():
                return profile_plan(self._workload, request)
            case TraceLayers():
                return trace_layers(self._workload, request)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until their pipe is closed, which ends the process at once."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in requests:
                lines.put(line)
        finally:
            _end()

    threading.Thread(target=read, name="requests", daemon=True).start()
    try:
        _answer_all(lines, replies)
    except BaseException:
        # Not by way of the interpreter's shutdown, which would wait for the thread that reads.
        traceback.print_exc()
        os._exit(1)


def _end() -> NoReturn:
    """The coordinator is gone: a step may be running, and nobody waits for it or for what the target started."""
    mark = os.environ.get(stragglers.MARK)
    if mark is not None:  # as the engine starts a worker; a person at a terminal has other things in the group
        stragglers.kill_marked(mark)
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _answer_all(lines: queue.SimpleQueue[bytes], replies: BinaryIO) -> NoReturn:
    number = 0

    def say(message: Reply | AwaitsTurn) -> None:
        replies.write(to_json(ReplyLine(number, message)).encode() + b"\n")
        replies.flush()

    def take_turn() -> None:
        say(AwaitsTurn())
        line = lines.get()
        try:
            from_json(TakeTurn, line)
        except ValueError:
            raise ProtocolError(f"a turn was waited for, not {shorten(line)}") from None

    worker = Worker(take_turn)
    pid = os.getpid()
    while True:
        line = lines.get()
        number += 1
        try:
            request: Request = from_json(Request, line)
        except ValueError as error:
            reply: Reply = Failed("internal", f"not a request: {shorten(line)}: {shorten(str(error), 300)}")
        else:
            reply = worker.answer(request)
            if os.getpid() != pid:
                os._exit(0)  # a child that the target forked has come out of the target's code; the reply isn't its
        say(reply)


def main() -> None:
    """Keeps the reply pipe for replies alone, and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which ends its workers itself
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # how the engine asks a worker that hangs where it does
    # Both pipes are this file's alone: what a target reads from stdin, or closes, is not the protocol.
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # A child that the target forks has nothing to say there, and would keep the pipe open beyond the worker's death.
    os.register_at_fork(after_in_child=lambda: os.close(replies.fileno()))
    serve(requests, replies)


if __name__ == "__main__":
    main()
