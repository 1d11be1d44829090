"""The worker processes of one job, which stand or fall together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from actune.engine.process import WorkerDiedError, WorkerProcess
from actune.records import RENDEZVOUS, Failed, Measured, Outcome, Reply, Request

GRACE_S = 5.0
"""Once a rank has failed, the others get so long to say the same. Those that wait for it in a collective never will."""


class WorkerGroup:
    """The ranks of one job on this machine, asked and buried like one worker process.

    Every rank gets every request. Ranks agree upon what they measure themselves (`actune.measure.ranks`), so rank 0's
    reply stands for all. What ends one of them without a result ends the job: the others would wait for it for ever.
    """

    def __init__(self, log_folder: Path, number: int, nproc: int, environment: dict[str, str]) -> None:
        """Starts the processes.

        Args:
            log_folder: what each prints is appended to a file there.
            number: of this worker, for the files' names.
            nproc: how many processes.
            environment: variables of all of them, beside this process's own.

        Raises:
            StorageError: a log can't be written.
        """
        self.environment = environment
        self._folder = Path(tempfile.mkdtemp(prefix="actune-ranks-"))
        self._ranks: list[WorkerProcess] = []
        self._threads = ThreadPoolExecutor(max_workers=nproc, thread_name_prefix="rank")
        try:
            for rank in range(nproc):
                of_rank = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(nproc),
                    "LOCAL_WORLD_SIZE": str(nproc),
                    "MASTER_ADDR": "127.0.0.1",
                    RENDEZVOUS: str(self._folder),
                }
                log_path = log_folder / f"worker-{number}-rank{rank}.log"
                self._ranks.append(WorkerProcess(log_path, environment | of_rank))
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id of rank 0."""
        return self._ranks[0].pid

    @property
    def is_alive(self) -> bool:
        """Whether no rank has ended or been ended."""
        return all(rank.is_alive for rank in self._ranks)

    def ask(self, request: Request, *, timeout_s: float, take_turn: Callable[[], None]) -> Reply:
        """Sends a request to all ranks and waits for their replies.

        Args:
            request: to be carried out.
            timeout_s: how long that may take, waiting for a turn aside.
            take_turn: called where a rank waits for its turn; returns once the job has it.

        Raises:
            WorkerDiedError: a rank died, or did not reply in time; all of them are gone.
        """
        asked = [
            self._threads.submit(rank.ask, request, timeout_s=timeout_s, take_turn=take_turn) for rank in self._ranks
        ]
        failed = _wait_for_all(asked)
        if not failed:
            return asked[0].result()
        if not self.is_alive or not all(future.done() for future in asked):
            self.kill()
        return _outcome(asked, failed)

    def kill(self) -> None:
        """Ends all ranks and their children at once, and waits for them."""
        for rank in self._ranks:
            rank.kill()
        # Each rank's death ends the wait of the thread that asked it.
        self._threads.shutdown(wait=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def _wait_for_all(asked: Sequence[Future[Reply]]) -> list[int]:
    """The ranks that failed by the end of the grace, the first one first; none if each has a result."""
    failed: list[int] = []
    pending = set(asked)
    while pending:
        done, pending = wait(pending, timeout=GRACE_S if failed else None, return_when=FIRST_COMPLETED)
        failed += [rank for rank, future in enumerate(asked) if future in done and _has_failed(future)]
        if failed and not done:
            break
    return failed


def _has_failed(asked: Future[Reply]) -> bool:
    if asked.exception() is not None:
        return True
    reply = asked.result()
    if isinstance(reply, Measured):
        measurement = reply.measurement
        # Ranks agree that a peak is over the budget; one that the allocator stopped has no peak and agreed with nobody.
        agreed = measurement.outcome is Outcome.OVER_BUDGET and measurement.peak_bytes is not None
        return measurement.outcome is not Outcome.OK and not agreed
    return isinstance(reply, Failed)


def _outcome(asked: Sequence[Future[Reply]], failed: Sequence[int]) -> Reply:
    """The one failure that explains the others.

    A death comes before what its peers say about a closed connection, running out of memory before other errors; else
    the first one counts. If several ranks have not replied in time, any may be the one that the others wait for.

    Raises:
        WorkerDiedError: it is a rank's death.
    """
    rank = min(failed, key=lambda rank: _importance(asked[rank]))
    death = asked[rank].exception()
    if death is None:
        reply = asked[rank].result()
        if all(_message(asked[other]) == _message(asked[rank]) for other in range(len(asked))):
            return reply
        return _named(reply, rank)
    if not isinstance(death, WorkerDiedError):
        raise death
    alike = [other for other in failed if _is_timeout(asked[other]) == death.timed_out] if death.timed_out else [rank]
    tails = [f"rank {other}:\n{_death(asked[other]).log_tail}" for other in alike]
    message = f"{', '.join(f'rank {other}' for other in alike)}: {death.message}"
    raise WorkerDiedError(death.timed_out, death.out_of_memory, message, "\n".join(tails))


def _importance(asked: Future[Reply]) -> int:
    if asked.exception() is not None:
        return 1 if _is_timeout(asked) else 0
    reply = asked.result()
    out_of_memory = (isinstance(reply, Failed) and reply.blame == "oom") or (
        isinstance(reply, Measured) and reply.measurement.outcome in (Outcome.OOM, Outcome.OVER_BUDGET)
    )
    return 2 if out_of_memory else 3


def _death(asked: Future[Reply]) -> WorkerDiedError:
    death = asked.exception()
    assert isinstance(death, WorkerDiedError)
    return death


def _is_timeout(asked: Future[Reply]) -> bool:
    return isinstance(asked.exception(), WorkerDiedError) and _death(asked).timed_out


def _message(asked: Future[Reply]) -> str | None:
    if not asked.done() or asked.exception() is not None:
        return None
    reply = asked.result()
    if isinstance(reply, Measured):
        return reply.measurement.message
    return reply.message if isinstance(reply, Failed) else None


def _named(reply: Reply, rank: int) -> Reply:
    """The reply with its rank in the message."""
    if isinstance(reply, Measured):
        message = f"rank {rank}: {reply.measurement.message}"
        return replace(reply, measurement=replace(reply.measurement, message=message), worker_spent=True)
    assert isinstance(reply, Failed)
    return replace(reply, message=f"rank {rank}: {reply.message}")
