"""The system's clock jumps by days, back and forth, as when a machine is suspended or its time is set."""

from __future__ import annotations

import datetime
import itertools
import sys
import time

import pytest

from actune.store import Store
from actune.study_records import Verdict

from .fakes import Machine, search
from .test_recovery import check_whole, dying, states

JUMPS_S = (0.0, -400 * 86400.0, 30 * 86400.0, -1.0, 3600.0)


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock jumps each time somebody looks at it; the monotonic one does not, as the system promises."""
    jumps, seen = itertools.cycle(JUMPS_S), list[float]()
    real_time, real_datetime = time.time, datetime.datetime

    def jumped() -> float:
        seen.append(real_time() + next(jumps))
        return seen[-1]

    class Jumping(real_datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real_datetime.fromtimestamp(jumped(), tz)

    monkeypatch.setattr(time, "time", jumped)
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("actune", "optuna") and vars(module).get("datetime") is real_datetime:
            monkeypatch.setattr(module, "datetime", Jumping)
    return seen


def plans_of(store: Store, name: str) -> list[tuple[int, str]]:
    return [(trial.number, trial.plan_hash) for trial in store.trials(name)]


@pytest.fixture
def expected(store: Store) -> Verdict:
    """Of the same search on a like machine, before the clock jumps."""
    return search(store, Machine(fingerprint="fedcba9876543210"), "steady")


def test_a_search_is_the_same_whatever_the_clock_says(
    store: Store, machine: Machine, expected: Verdict, jumping: list[float]
) -> None:
    verdict = search(store, machine)
    assert len(jumping) > 12
    assert (verdict.best_hash, verdict.stopped) == (expected.best_hash, expected.stopped)
    assert plans_of(store, "a") == plans_of(store, "steady")
    check_whole(store, machine, 6)


def test_a_death_and_a_jump_lose_nothing(store: Store, machine: Machine, jumping: list[float]) -> None:
    with dying(Store, "record_trial", call=3, after=True, death=KeyboardInterrupt):
        search(store, machine)
    before = store.trials("a")
    search(store, machine, timeout_s=3600.0)
    assert store.trials("a")[: len(before)] == before
    check_whole(store, machine, 6)
    assert states(store)["COMPLETE"] + states(store)["PRUNED"] >= 6
