"""`python -m actune.worker`: one request per line of JSON on stdin, one reply per line on what was stdout.

The target's own prints go to stderr, which the engine keeps in a log. The process ends when its stdin does, in the
middle of a step too: a coordinator that was killed leaves no worker behind.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from actune.boundary import from_json, shorten, to_json
from actune.errors import PlanError, TargetError, UsageError
from actune.records import (
    CompareGradients,
    Failed,
    Loaded,
    LoadTarget,
    MeasurePlan,
    MeasureRounds,
    Reply,
    Request,
    TargetInfo,
)

if TYPE_CHECKING:
    from actune.measure import Workload


class Worker:
    """Carries requests out on the target that the first of them loads."""

    def __init__(self) -> None:
        self._workload: Workload | None = None

    def answer(self, request: Request) -> Reply:
        """The reply; what goes wrong is a reply too, with whom to blame."""
        # torch takes seconds to import, and only once the pipes are set up can a failure of that be told.
        from actune.measure import is_out_of_memory

        try:
            return self._carry_out(request)
        except PlanError as error:
            return Failed("plan", str(error))
        except UsageError as error:
            return Failed("usage", str(error))
        except TargetError as error:
            return Failed("target", str(error), traceback.format_exc())
        except Exception as error:
            message = f"{type(error).__name__}: {shorten(str(error), 300)}"
            if is_out_of_memory(error):
                return Failed("oom", message)
            return Failed("target", message, traceback.format_exc())

    def _carry_out(self, request: Request) -> Reply:
        from actune.measure import Workload, compare_gradients, measure_plan, measure_rounds, open_device

        if isinstance(request, LoadTarget):
            device = open_device(request.device)
            workload = self._workload = Workload(request.spec, device, seed=request.seed)
            info = TargetInfo(
                spec=request.spec,
                fingerprint=workload.fingerprint,
                structure=workload.structure,
                parameter_bytes=workload.parameter_bytes,
                static_bytes=device.live_bytes(workload.bookkeeping),
            )
            return Loaded(info, device.environment())
        if self._workload is None:
            return Failed("internal", f"'{request.kind}' came before 'load'")
        match request:
            case MeasurePlan():
                return measure_plan(self._workload, request)
            case MeasureRounds():
                return measure_rounds(self._workload, request)
            case CompareGradients():
                return compare_gradients(self._workload, request)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until their pipe is closed, which ends the process at once."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)  # the coordinator is gone; a step may be running, and nobody waits for it

    threading.Thread(target=read, name="requests", daemon=True).start()
    try:
        _answer_all(lines, replies)
    except BaseException:
        # Not by way of the interpreter's shutdown, which would wait for the thread that reads.
        traceback.print_exc()
        os._exit(1)


def _answer_all(lines: queue.SimpleQueue[bytes], replies: BinaryIO) -> NoReturn:
    worker = Worker()
    while True:
        line = lines.get()
        try:
            request: Request = from_json(Request, line)
        except ValueError as error:
            reply: Reply = Failed("internal", f"not a request: {shorten(line)}: {shorten(str(error), 300)}")
        else:
            reply = worker.answer(request)
        replies.write(to_json(reply).encode() + b"\n")
        replies.flush()


def main() -> None:
    """Keeps the reply pipe for replies alone, and serves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which ends its workers itself
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
