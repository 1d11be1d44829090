"""Which of several ranks' failures is the job's."""

from concurrent.futures import Future

import pytest

from actune.engine.group import _has_failed, _outcome
from actune.engine.process import WorkerDiedError
from actune.records import Failed, Measured, Measurement, Outcome

OK = Measured(Measurement(Outcome.OK, peak_bytes=5))
CLOSED = Measured(Measurement(Outcome.ERROR, message="RuntimeError: Connection closed by peer"))
OOM = Measured(Measurement(Outcome.OOM, message="OutOfMemoryError"))
CAPPED = Measured(Measurement(Outcome.OVER_BUDGET, message="out of memory under the cap"))
OVER = Measured(Measurement(Outcome.OVER_BUDGET, peak_bytes=5, message="over"))
MISFIT = Failed("plan", "no layer 9")
KILLED = WorkerDiedError(False, True, "killed by the system", "tail")
LATE = WorkerDiedError(True, False, "no reply", "stack")


def asked(*ends):
    futures = []
    for end in ends:
        future = Future()
        if isinstance(end, Exception):
            future.set_exception(end)
        elif end is not None:
            future.set_result(end)
        futures.append(future)
    return futures


def job(*ends, first=0):
    """The outcome of these ends, `first` being the rank that failed first; None of a rank that waits."""
    futures = asked(*ends)
    failed = [rank for rank, future in enumerate(futures) if future.done() and _has_failed(future)]
    return _outcome(futures, sorted(failed, key=lambda rank: rank != first))


@pytest.mark.parametrize(("end", "failed"), [(OK, False), (OVER, False), (CAPPED, True), (OOM, True), (MISFIT, True)])
def test_only_what_ranks_agree_upon_is_no_failure(end, failed):
    assert _has_failed(asked(end)[0]) is failed


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((None, CLOSED), "rank 1: RuntimeError: Connection closed by peer"),
        ((CLOSED, OOM), "rank 1: OutOfMemoryError"),
        ((CLOSED, CAPPED, None), "rank 1: out of memory under the cap"),
        ((OK, CLOSED), "rank 1: RuntimeError: Connection closed by peer"),
    ],
)
def test_reply_that_explains_the_others_names_its_rank(ends, message):
    reply = job(*ends)
    assert reply.measurement.message == message
    assert reply.worker_spent


def test_what_all_ranks_say_names_none():
    assert job(MISFIT, MISFIT) is MISFIT
    assert job(MISFIT, None).message == "rank 0: no layer 9"


def test_a_death_comes_before_what_its_peers_say():
    with pytest.raises(WorkerDiedError, match="rank 1: killed by the system") as caught:
        job(CLOSED, KILLED, LATE)
    assert caught.value.out_of_memory


def test_ranks_that_are_late_together_are_named_together():
    with pytest.raises(WorkerDiedError, match="rank 0, rank 2: no reply") as caught:
        job(LATE, CLOSED, LATE, first=1)
    assert caught.value.timed_out
    assert caught.value.log_tail == "rank 0:\nstack\nrank 2:\nstack"
