"""What a search does to a study, with a real store and an engine that follows a formula."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import wait as futures_wait
from dataclasses import replace
from pathlib import Path

import pytest

from actune.errors import PlanError, StorageError, TargetError, UsageError
from actune.plan import Plan, plan_hash
from actune.plan.presets import preset_plan
from actune.records import Measurement, Outcome
from actune.search import trials as trials_module
from actune.store import Store

from .fakes import NO_AC_HASH, SPACE, Listener, Machine, dense, mixture, peak_of, search


def preset_hash(name: str, machine: Machine) -> str:
    return plan_hash(preset_plan(name, machine.structure))


def hashes(store: Store, name: str = "a") -> list[str]:
    return [trial.plan_hash for trial in store.trials(name)]


def test_presets_come_first_then_as_many_distinct_plans_as_asked_for(store: Store, machine: Machine) -> None:
    listener = Listener()
    verdict = search(store, machine, trials=9, reporter=listener)
    trials = store.trials("a")
    assert [trial.preset for trial in trials] == ["full", "none", "sac"] + [None] * 6
    assert len(trials) == 9 == len(set(hashes(store)))
    assert machine.measured == hashes(store)
    assert verdict == store.verdict("a")
    assert verdict.trials == 9
    assert [len(progress.trials) for progress in listener.progress] == list(range(1, 10))
    assert {progress.total for progress in listener.progress} == {9}
    best = [p.best for p in listener.progress]
    assert best[0] == trials[0].number
    assert listener.progress[-1].relative_step_times[best[-1]] <= 1.0  # type: ignore[index]


def test_first_preset_that_fits_is_the_reference_of_all_others(store: Store, machine: Machine) -> None:
    search(store, machine)
    assert store.study("a").reference_hash == preset_hash("full", machine)
    assert set(machine.references) == {preset_hash("full", machine)}


def test_a_plan_over_the_budget_is_no_reference(store: Store, machine: Machine) -> None:
    # On a card the reference would be what runs out of memory, and each plan beside it would take the blame.
    yaml = SPACE.replace("[full, none, sac]", "[none, sac, full]")
    verdict = search(store, machine, space_yaml=yaml)
    none, sac = store.trials("a")[:2]
    assert none.measurement.outcome is Outcome.OVER_BUDGET
    assert store.study("a").reference_hash == sac.plan_hash
    assert NO_AC_HASH not in machine.references[1:]
    assert verdict.entries[0].plan_hash == sac.plan_hash


def test_trials_wait_for_the_reference_also_with_many_workers(store: Store, machine: Machine) -> None:
    machine.outcomes[preset_hash("full", machine)] = Measurement(Outcome.CRASHED, message="killed")
    search(store, machine, workers=4)
    sac = preset_hash("sac", machine)
    assert store.study("a").reference_hash == sac
    assert machine.references == [preset_hash("full", machine), NO_AC_HASH] + [sac] * 4


def test_trials_that_finish_out_of_order_are_all_kept(store: Store, machine: Machine) -> None:
    machine.delay_s = lambda name: int(name[:4], 16) / 0xFFFF / 100
    search(store, machine, workers=3, trials=12)
    assert len(machine.measured) == 12 == len(set(machine.measured))
    assert sorted(machine.measured) == sorted(hashes(store))
    for trial in store.trials("a"):
        assert trial.measurement.outcome is not Outcome.OK or trial.measurement.peak_bytes is not None


def test_a_trial_that_ended_is_kept_when_another_ends_the_search(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "wait", lambda futures, return_when: futures_wait(futures))
    machine.outcomes[NO_AC_HASH] = TargetError("the target can't be loaded any more")
    machine.without_ac = Measurement(Outcome.OK, 2630)
    with pytest.raises(TargetError, match="any more"):
        search(store, machine, workers=2)
    assert machine.measured == hashes(store) == [preset_hash("full", machine), preset_hash("sac", machine)]


def test_a_plan_at_fault_is_an_outcome_that_is_kept_when_another_trial_ends_the_search(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "wait", lambda futures, return_when: futures_wait(futures))
    machine.outcomes[NO_AC_HASH] = TargetError("the target can't be loaded any more")
    machine.outcomes[preset_hash("sac", machine)] = PlanError("save: 'x::mm' matches nothing")
    machine.without_ac = Measurement(Outcome.OK, 2630)
    with pytest.raises(TargetError, match="any more"):
        search(store, machine, workers=2)
    assert [trial.measurement.outcome for trial in store.trials("a")] == [Outcome.OK, Outcome.ERROR]


def test_space_with_fewer_plans_than_trials_ends_the_search(store: Store, machine: Machine) -> None:
    yaml = "schema: 1\nsegments: 1\npresets: [full]\nmenu:\n  - policy: none\n  - policy: full\n"
    listener = Listener()
    verdict = search(store, machine, space_yaml=yaml, trials=50, reporter=listener)
    assert sorted(hashes(store)) == sorted([NO_AC_HASH, preset_hash("full", machine)])
    assert verdict.trials == 2
    assert any("every plan of the space" in stage for stage in listener.stages)


def test_small_space_is_searched_to_its_last_plan(store: Store, machine: Machine) -> None:
    yaml = "schema: 1\nsegments: 2\npresets: [full]\nmenu:\n  - policy: none\n  - policy: full\n  - policy: selective\n"
    machine.structure = dense(2)
    search(store, machine, space_yaml=yaml, trials=100, sampler="random")
    assert len(hashes(store)) == 3**2


def test_duplicates_are_told_and_are_no_trials(store: Store, machine: Machine, tmp_path: Path) -> None:
    yaml = "schema: 1\nsegments: 2\npresets: [full]\nmenu:\n  - policy: none\n  - policy: full\n"
    search(store, machine, space_yaml=yaml, trials=8)
    assert len(machine.measured) == len(hashes(store)) == 8
    with sqlite3.connect(tmp_path / "actune.db") as database:
        states = dict(database.execute("SELECT state, count(*) FROM trials GROUP BY state"))
        duplicates = database.execute(
            "SELECT count(*) FROM trial_user_attributes WHERE key = 'actune:duplicate_of'"
        ).fetchone()[0]
    database.close()
    assert "RUNNING" not in states
    assert sum(states.values()) == 8 + duplicates
    assert duplicates > 0


def test_a_study_takes_over_what_an_earlier_one_measured(store: Store, machine: Machine) -> None:
    search(store, machine, "first")
    del machine.measured[:]
    search(store, machine, "second", sampler="random", seed=5)
    trials = store.trials("second")
    reused = {trial.plan_hash for trial in trials if trial.reused}
    assert {preset_hash(name, machine) for name in ("full", "none", "sac")} <= reused
    assert sorted(machine.measured) == sorted(trial.plan_hash for trial in trials if not trial.reused)
    before = {trial.plan_hash: trial.measurement for trial in store.trials("first")}
    assert all(trial.measurement == before[trial.plan_hash] for trial in trials if trial.reused)


def test_an_ok_peak_above_a_tighter_budget_is_taken_over_as_infeasible(store: Store, machine: Machine) -> None:
    search(store, machine, "loose", budget="100%", trials=3)
    del machine.measured[:]
    verdict = search(store, machine, "tight", budget="1300B", trials=3)
    none = next(trial for trial in store.trials("tight") if trial.preset == "none")
    assert none.reused
    assert none.measurement.outcome is Outcome.OK
    assert none.plan_hash != verdict.best_hash
    assert verdict.best_hash == preset_hash("full", machine)
    assert machine.measured == []


def test_over_budget_from_a_tighter_cap_is_run_again(store: Store, machine: Machine) -> None:
    search(store, machine, "tight", budget="1300B", trials=3)
    del machine.measured[:]
    verdict = search(store, machine, "loose", budget="100%", trials=3)
    assert sorted(machine.measured) == sorted([NO_AC_HASH, preset_hash("sac", machine)])
    assert verdict.best_hash == NO_AC_HASH


def test_another_target_or_environment_shares_nothing(store: Store, machine: Machine) -> None:
    search(store, machine, "first", trials=3)
    other = Machine(fingerprint="f" * 16)
    search(store, other, "second", trials=3)
    slower = Machine(environment=replace(machine.environment, threads=2))
    search(store, slower, "third", trials=3)
    assert len(other.measured) == len(slower.measured) == 3


def test_budget_below_the_static_bytes_ends_after_the_presets(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="900B", trials=30)
    assert [trial.preset for trial in store.trials("a")] == ["full", "none", "sac"]
    assert verdict.best_hash is None
    assert (verdict.entries, verdict.reference_hash) == ((), None)


def test_infeasible_budget_names_the_smallest_peak_run_to_its_end(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="1100B", trials=6)
    assert all(trial.measurement.outcome is Outcome.OVER_BUDGET for trial in store.trials("a"))
    assert verdict.best_hash is None
    full = preset_plan("full", machine.structure)
    # Under the cap only the first step ran, whose peak lacks the optimizer's state.
    assert verdict.smallest_peak_bytes == peak_of(full, machine.structure)
    assert verdict.smallest_peak_hash == plan_hash(full)


def test_smallest_peak_is_not_one_taken_over_if_a_smaller_one_was_cut_short(store: Store, machine: Machine) -> None:
    search(store, machine, "loose", budget="100%", trials=1, space_yaml=SPACE.replace("full, none, sac", "none"))
    verdict = search(store, machine, "tight", budget="1100B", trials=3)
    outcomes = {trial.preset: trial.measurement.outcome for trial in store.trials("tight")}
    assert outcomes == {"none": Outcome.OK, "full": Outcome.OVER_BUDGET, "sac": Outcome.OVER_BUDGET} or (
        outcomes["none"] is Outcome.OVER_BUDGET
    )
    assert verdict.smallest_peak_hash == preset_hash("full", machine)


def test_plan_that_does_not_fit_the_model_is_an_error_outcome(store: Store, machine: Machine) -> None:
    machine.outcomes[preset_hash("sac", machine)] = PlanError("save: 'x::mm' matches nothing")
    search(store, machine)
    sac = next(trial for trial in store.trials("a") if trial.preset == "sac")
    assert sac.measurement == Measurement(Outcome.ERROR, message="save: 'x::mm' matches nothing")
    assert len(hashes(store)) == 6


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.TIMEOUT, Outcome.CRASHED])
def test_target_that_fails_without_ac_is_at_fault(store: Store, machine: Machine, outcome: Outcome) -> None:
    machine.without_ac = Measurement(outcome, message="RuntimeError: boom", detail="Traceback …")
    with pytest.raises(TargetError, match=r"fails without any .*boom.*target-error\.txt") as caught:
        search(store, machine)
    assert caught.value.traceback_path is not None
    assert caught.value.traceback_path.read_text() == "Traceback …"
    assert machine.measured == []


def test_target_that_runs_out_of_memory_without_ac_is_searched(store: Store, machine: Machine) -> None:
    machine.without_ac = Measurement(Outcome.OOM, peak_bytes=1700, message="out of memory")
    verdict = search(store, machine)
    assert verdict.best_hash is not None
    # The run without AC can't be what gradients are compared with.
    assert {reference for _, reference in machine.compared} == {preset_hash("full", machine)}


def test_share_of_a_peak_that_was_cut_short_by_oom_is_no_budget(store: Store, machine: Machine) -> None:
    machine.without_ac = Measurement(Outcome.OOM, peak_bytes=1700, message="out of memory")
    with pytest.raises(UsageError, match="Give the budget as a size"):
        search(store, machine, budget="60%")


def test_share_is_taken_of_the_peak_without_ac_once(store: Store, machine: Machine) -> None:
    search(store, machine, budget="50%", trials=3)
    assert store.study("a").budget_bytes == peak_of(Plan(), machine.structure) // 2
    machine.without_ac = Measurement(Outcome.OK, 5000)
    search(store, machine, budget="50%", trials=4)
    assert store.study("a").budget_bytes == peak_of(Plan(), machine.structure) // 2


def test_finished_study_is_not_run_again(store: Store, machine: Machine) -> None:
    verdict = search(store, machine)
    assert search(store, machine) == verdict
    assert machine.loads == 1


def test_more_trials_go_on_from_where_the_study_is(store: Store, machine: Machine) -> None:
    search(store, machine, trials=5)
    before = store.trials("a")
    verdict = search(store, machine, trials=9)
    assert store.trials("a")[:5] == before
    assert len(set(hashes(store))) == 9 == len(machine.measured)
    assert verdict.trials == 9
    assert store.study("a").settings.trials == 9


def test_timeout_starts_no_more_trials_and_still_decides(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(trials_module.time, "monotonic", lambda: now_s[0])

    def tick(name: str) -> None:
        now_s[0] += 10.0

    machine.before_trial = tick
    listener = Listener()
    verdict = search(store, machine, timeout_s=35.0, trials=20, reporter=listener)
    assert len(hashes(store)) == 4
    assert verdict.best_hash is not None
    assert [progress.deadline_s for progress in listener.progress] == [25.0, 15.0, 5.0, 0.0]


def test_a_timeout_that_loading_alone_takes_leaves_one_trial(
    store: Store, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(trials_module.time, "monotonic", lambda: float(next(clock)))
    verdict = search(store, machine, timeout_s=35.0, trials=20)
    assert hashes(store) == [preset_hash("full", machine)]
    assert verdict.best_hash == preset_hash("full", machine)


@pytest.mark.parametrize(
    "changes",
    [{"budget": "1999B"}, {"space_yaml": SPACE.replace("segments: 2", "segments: 3")}],
)
def test_study_does_not_go_on_with_another_budget_or_space(
    store: Store, machine: Machine, changes: dict[str, str]
) -> None:
    search(store, machine, trials=3)
    with pytest.raises(UsageError, match=r"study 'a' was started with budget 2000B and space 'test'"):
        search(store, machine, trials=9, **changes)
    assert len(hashes(store)) == 3


def test_study_does_not_go_on_with_another_target_or_machine(store: Store, machine: Machine) -> None:
    search(store, machine, trials=3)
    with pytest.raises(UsageError, match="is not what it was when the study began"):
        search(store, Machine(fingerprint="f" * 16), trials=9)
    with pytest.raises(UsageError, match="Their times can't be compared"):
        search(store, Machine(environment=replace(machine.environment, torch_version="2.12.0")), trials=9)


@pytest.mark.parametrize(("structure", "space"), [(dense(3), "dense"), (mixture(3), "moe")])
def test_auto_takes_the_space_that_fits_the_model_and_keeps_it(store: Store, structure: object, space: str) -> None:
    machine = Machine(structure=structure)  # type: ignore[arg-type]
    search(store, machine, space="auto", space_yaml="", trials=2, budget="90%")
    kept = store.study("a").settings
    assert kept.space == space
    assert "menu:" in kept.space_yaml
    search(store, machine, space="auto", space_yaml="", trials=3, budget="90%")
    assert store.study("a").settings == replace(kept, trials=3)


def test_database_that_breaks_under_optuna_is_a_storage_error(store: Store, machine: Machine, tmp_path: Path) -> None:
    def drop_table(name: str) -> None:
        database = sqlite3.connect(tmp_path / "actune.db")
        database.execute("DROP TABLE trial_user_attributes")
        database.close()

    machine.before_trial = drop_table
    with pytest.raises(StorageError, match=r"actune\.db.*no such table: trial_user_attributes"):
        search(store, machine)


def test_what_a_listener_hears_can_be_shown(store: Store, machine: Machine) -> None:
    listener = Listener()
    search(store, machine, budget="1300B", trials=6, reporter=listener)
    for progress in listener.progress:
        assert progress.study.budget_bytes == 1300
        fitting = {t.number for t in progress.trials if t.measurement.outcome is Outcome.OK}
        assert progress.best in fitting
        assert json.dumps(progress.relative_step_times)
