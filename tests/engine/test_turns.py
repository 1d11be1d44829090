"""Requests share a processor until one is to be timed; it is then alone, and nobody waits for ever."""

import threading
from contextlib import ExitStack

import pytest

from actune.engine.turns import Turns

WAIT_S = 30  # for what must come to be; only a failing test waits as long


class Requests:
    """Requests in threads of their own, each told step by step what to do."""

    def __init__(self, turns):
        self._turns = turns
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def begin(self):
        request = _Request(self._turns)
        self._stack.callback(request.thread.join, WAIT_S)
        self._stack.callback(request.end)
        return request


class _Request:
    def __init__(self, turns):
        self.has_begun, self.has_turn, self.may_take, self.may_end = (threading.Event() for _ in range(4))
        self.has_ended = threading.Event()
        self._turns = turns
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with self._turns.request() as turn:
            self.turn = turn
            self.has_begun.set()
            self.may_take.wait()
            if not self.may_end.is_set():
                turn.take()
                self.has_turn.set()
            self.may_end.wait()
        self.has_ended.set()

    def take(self):
        self.may_take.set()

    def end(self):
        self.may_end.set()
        self.may_take.set()


@pytest.fixture
def requests():
    with Requests(Turns()) as requests:
        yield requests


def waits(event):
    return not event.wait(0.05)


def test_requests_run_side_by_side_until_one_takes_its_turn(requests):
    first, second = requests.begin(), requests.begin()
    assert first.has_begun.wait(WAIT_S)
    assert second.has_begun.wait(WAIT_S)
    first.take()
    assert waits(first.has_turn)
    second.end()
    assert first.has_turn.wait(WAIT_S)


def test_who_waits_goes_before_who_has_not_begun(requests):
    first, second = requests.begin(), requests.begin()
    assert first.has_begun.wait(WAIT_S)
    assert second.has_begun.wait(WAIT_S)
    first.take()
    assert waits(first.has_turn)
    late = requests.begin()
    assert waits(late.has_begun)
    second.end()
    assert first.has_turn.wait(WAIT_S)
    assert waits(late.has_begun)
    first.end()
    assert late.has_begun.wait(WAIT_S)


def test_several_take_their_turns_one_after_the_other(requests):
    both = [requests.begin(), requests.begin()]
    assert all(request.has_begun.wait(WAIT_S) for request in both)
    for request in both:
        request.take()
    one = next(request for _ in range(WAIT_S * 20) for request in both if request.has_turn.wait(0.05))
    other = both[both.index(one) - 1]
    assert waits(other.has_turn)
    one.end()
    assert other.has_turn.wait(WAIT_S)


def test_the_processes_of_a_job_take_one_turn_together(requests):
    job, other = requests.begin(), requests.begin()
    assert job.has_begun.wait(WAIT_S)
    assert other.has_begun.wait(WAIT_S)
    second_rank = threading.Thread(target=job.turn.take)
    job.take()
    second_rank.start()
    second_rank.join(0.05)
    assert second_rank.is_alive()
    other.end()
    assert job.has_turn.wait(WAIT_S)
    second_rank.join(WAIT_S)
    assert not second_rank.is_alive()


def test_a_request_that_ends_while_a_process_of_its_waits_leaves_nothing_taken(requests):
    job, other = requests.begin(), requests.begin()
    assert job.has_begun.wait(WAIT_S)
    assert other.has_begun.wait(WAIT_S)
    rank = threading.Thread(target=job.turn.take)
    rank.start()
    rank.join(0.05)
    job.end()  # another of its processes has died
    rank.join(WAIT_S)
    assert not rank.is_alive()
    other.take()
    assert other.has_turn.wait(WAIT_S)
    other.end()
    assert requests.begin().has_begun.wait(WAIT_S)
