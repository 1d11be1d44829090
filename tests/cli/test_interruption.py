"""An interruption is raised again where it was swallowed."""

import gc
import os
import signal

import pytest

from actune.cli.interruption import InterruptibleReporter, Interruption
from actune.search import SilentReporter


@pytest.fixture
def interruption():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interruption = Interruption()
    interruption.install()
    yield interruption
    for number, handler in before.items():
        signal.signal(number, handler)


class InterruptedWhileDropped:
    """A finalizer, from which Python lets nothing out."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_swallowed_is_raised_at_the_next_stage(interruption, number):
    reporter = InterruptibleReporter(SilentReporter(), interruption)
    reporter.stage("before")
    dropped = InterruptedWhileDropped(number)
    del dropped
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        reporter.stage("after")


def test_it_is_raised_at_once_where_nothing_swallows_it(interruption):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
