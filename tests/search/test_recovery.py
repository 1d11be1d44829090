"""A coordinator that dies at any point, and the next one on the same database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest

from actune.plan import Plan, plan_hash
from actune.records import Measurement, Outcome
from actune.search.study import MAX_ATTEMPTS, PlanStudy
from actune.search.verdict import Judge
from actune.store import Store

from .fakes import SPACE, Machine, search
from .test_coordinator import hashes, preset_hash

DEATHS = (KeyboardInterrupt, SystemExit)


@contextmanager
def dying(owner: Any, method: str, *, call: int, after: bool = False, death: type[BaseException]) -> Iterator[None]:
    """Within it the owner's method dies in its n-th call, before its work or after it."""
    original: Callable[..., Any] = getattr(owner, method)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise death
        result = original(*args, **kwargs)
        if calls == call:
            raise death
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, wrapped)
        with pytest.raises(death):
            yield


def states(store: Store, name: str = "a") -> Counter[str]:
    study = optuna.load_study(study_name=name, storage=store.url)
    found = Counter(trial.state.name for trial in study.trials)
    study._storage.remove_session()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return found


def check_whole(store: Store, machine: Machine, trials: int) -> None:
    assert len(hashes(store)) == trials == len(set(hashes(store)))
    assert set(machine.measured) == set(hashes(store))
    assert {trial.preset for trial in store.trials("a")} >= {"full", "none", "sac"}
    assert "RUNNING" not in states(store)


POINTS = [
    (Machine, "before_trial", False, 0),  # asked for, not yet measured
    (Store, "record_trial", False, 1),  # measured, not yet stored
    (Store, "record_trial", True, 0),  # stored, not yet told
    (PlanStudy, "tell", True, 0),
    (PlanStudy, "ask", True, 0),
    (optuna.Study, "ask", True, 0),  # taken from the queue, its parameters not yet asked for
    (optuna.Trial, "set_constraint", True, 0),  # in the middle of being told
]


@pytest.mark.parametrize("call", [1, 2, 5])
@pytest.mark.parametrize(("owner", "method", "after", "lost"), POINTS)
def test_a_search_that_died_goes_on_without_loss(
    store: Store, machine: Machine, owner: type, method: str, call: int, after: bool, lost: int
) -> None:
    target: Any = owner
    if owner is Machine:
        machine.before_trial = lambda name: None
        target = machine
    death = DEATHS[call % 2]
    with dying(target, method, call=call, after=after, death=death):
        search(store, machine)
    stored = store.trials("a")
    verdict = search(store, machine)
    numbers = {trial.number for trial in stored}
    assert [trial for trial in store.trials("a") if trial.number in numbers] == stored
    check_whole(store, machine, 6)
    assert len(machine.measured) == 6 + lost
    assert verdict.best_hash is not None


def test_presets_survive_a_death_while_they_are_enqueued(store: Store, machine: Machine) -> None:
    with dying(optuna.Study, "enqueue_trial", call=2, death=KeyboardInterrupt):
        search(store, machine)
    search(store, machine)
    assert [trial.preset for trial in store.trials("a")][:3] == ["full", "none", "sac"]
    check_whole(store, machine, 6)


def test_a_death_while_recovering_loses_no_plan(store: Store, machine: Machine) -> None:
    with dying(machine, "before_trial", call=2, death=SystemExit):
        search(store, machine)
    for call in (1, 2):
        with dying(optuna.Study, "tell", call=call, death=SystemExit):
            search(store, machine)
    search(store, machine)
    check_whole(store, machine, 6)


def test_the_reference_survives_a_death_before_it_was_recorded(store: Store, machine: Machine) -> None:
    with dying(Store, "set_reference", call=1, death=KeyboardInterrupt):
        search(store, machine)
    assert store.study("a").reference_hash is None
    search(store, machine)
    assert store.study("a").reference_hash == preset_hash("full", machine)
    assert set(machine.references) == {preset_hash("full", machine)}


def test_a_plan_that_kills_the_coordinator_is_given_up_after_three_attempts(store: Store, machine: Machine) -> None:
    def kill(name: str) -> None:
        if name == plan_hash(Plan()):
            raise SystemExit(137)

    machine.before_trial = kill
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(SystemExit):
            search(store, machine)
    verdict = search(store, machine)
    assert plan_hash(Plan()) not in machine.measured
    assert len(hashes(store)) == 6
    assert verdict.best_hash is not None


def test_an_interrupted_plan_comes_back_with_its_preset_and_attempt(store: Store, machine: Machine) -> None:
    with dying(machine, "before_trial", call=2, death=KeyboardInterrupt):
        search(store, machine)
    search(store, machine)
    none = next(trial for trial in store.trials("a") if trial.preset == "none")
    assert none.attempt == 2
    assert none.plan_hash == plan_hash(Plan())
    assert [trial.attempt for trial in store.trials("a")].count(2) == 1


def test_an_interrupted_plan_of_the_sampler_comes_back_as_it_was(store: Store, machine: Machine) -> None:
    asked: list[str] = []
    machine.before_trial = asked.append
    with dying(machine, "before_trial", call=5, after=True, death=KeyboardInterrupt):
        search(store, machine)
    interrupted = asked[-1]
    search(store, machine)
    assert asked[5] == interrupted
    assert next(t for t in store.trials("a") if t.plan_hash == interrupted).attempt == 2


def test_a_death_with_several_workers_loses_only_what_ran(store: Store, machine: Machine) -> None:
    machine.delay_s = lambda name: int(name[:4], 16) / 0xFFFF / 100
    with dying(Store, "record_trial", call=3, death=KeyboardInterrupt):
        search(store, machine, workers=3)
    search(store, machine, workers=3)
    assert len(hashes(store)) == 6 == len(set(hashes(store)))
    assert set(hashes(store)) <= set(machine.measured)
    assert "RUNNING" not in states(store)


def test_a_death_in_the_final_comparison_measures_no_trial_again(store: Store, machine: Machine) -> None:
    with dying(Judge, "decide", call=1, death=KeyboardInterrupt):
        search(store, machine)
    assert store.verdict("a") is None
    verdict = search(store, machine)
    assert verdict == store.verdict("a")
    assert len(machine.measured) == 6


def test_a_crashed_trial_is_not_run_again(store: Store, machine: Machine) -> None:
    machine.outcomes[preset_hash("sac", machine)] = Measurement(Outcome.CRASHED, message="killed by SIGSEGV")
    search(store, machine, trials=4)
    search(store, machine, trials=6)
    assert machine.measured.count(preset_hash("sac", machine)) == 1


def test_a_disturbed_random_search_finds_the_plans_of_a_small_space_all_the_same(
    store: Store, machine: Machine
) -> None:
    yaml = SPACE.replace("segments: 2", "segments: 1")
    search(store, machine, "b", space_yaml=yaml, trials=9)
    for call in (2, 1, 3):
        with dying(Store, "record_trial", call=call, death=KeyboardInterrupt):
            search(store, machine, space_yaml=yaml, trials=9)
    search(store, machine, space_yaml=yaml, trials=9)
    assert set(hashes(store)) == set(hashes(store, "b"))
    assert len(hashes(store)) == 5
