"""The end of a search: what is compared, what wins, and what is written about it."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from actune.errors import TargetError
from actune.plan import dump_plan, parse_plan, plan_hash
from actune.plan.presets import preset_plan
from actune.records import Measurement, MeasureRounds, Outcome, SamplePair, StepSample
from actune.search.verdict import CANDIDATES
from actune.statistics import median_step_time_s
from actune.store import Store

from .fakes import NO_AC_HASH, SPACE, Machine, peak_of, search, time_of
from .test_coordinator import preset_hash


def fitting_by_time(store: Store, machine: Machine, budget_bytes: int) -> list[str]:
    plans = {t.plan_hash: parse_plan(t.plan_toml) for t in store.trials("a")}
    fitting = [h for h, plan in plans.items() if peak_of(plan, machine.structure) <= budget_bytes]
    return sorted(fitting, key=lambda h: time_of(plans[h], machine.structure))


def test_the_fastest_plan_that_fits_wins(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, trials=10)
    fastest = fitting_by_time(store, machine, 2000)
    assert verdict.best_hash == fastest[0]
    assert machine.compared == [(fastest[0], NO_AC_HASH)]
    assert [report.equal for _, report in verdict.gradients] == [True]
    assert verdict.smallest_peak_hash == preset_hash("full", machine)


def test_the_reference_the_best_and_the_presets_are_compared_side_by_side(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, trials=10)
    (compared,) = machine.rounds
    presets = {preset_hash(name, machine) for name in ("full", "none", "sac")}
    assert compared[0] == verdict.reference_hash == preset_hash("full", machine)
    assert set(compared) == presets | set(fitting_by_time(store, machine, 2000)[:CANDIDATES])
    assert len(compared) == len(set(compared))
    assert [entry.plan_hash for entry in verdict.entries] == compared
    trials = {trial.plan_hash: trial for trial in store.trials("a")}
    plans = {h: parse_plan(trial.plan_toml) for h, trial in trials.items()}
    reference_s = time_of(plans[compared[0]], machine.structure)
    for entry in verdict.entries:
        assert entry.number == trials[entry.plan_hash].number
        assert entry.preset == trials[entry.plan_hash].preset
        assert len(entry.samples) == 5
        expected = time_of(plans[entry.plan_hash], machine.structure) / reference_s
        assert entry.relative_low == entry.relative_high == entry.relative_step_time == pytest.approx(expected)


def test_the_comparison_in_rounds_decides_not_the_trial(store: Store, machine: Machine) -> None:
    # The slowest plan looked fastest while something else kept the machine busy during the reference's steps.
    flattering = SamplePair(StepSample(1.0, 1.0), StepSample(9.0, 9.0))
    peak_bytes = peak_of(preset_plan("full", machine.structure), machine.structure)
    machine.outcomes[preset_hash("full", machine)] = Measurement(Outcome.OK, peak_bytes, pairs=(flattering,) * 3)
    verdict = search(store, machine, trials=3)
    assert verdict.best_hash == preset_hash("sac", machine)


def test_a_plan_whose_gradients_differ_never_wins(store: Store, machine: Machine) -> None:
    search(store, machine, trials=10)
    fastest = fitting_by_time(store, machine, 2000)
    first = fastest[0]
    machine.unequal.add(first)
    verdict = search(store, machine, trials=10, verdict_rounds=6)  # other settings: what is measured is compared anew
    assert fastest == fitting_by_time(store, machine, 2000)
    assert fastest[0] == first
    assert verdict.best_hash == fastest[1]
    assert [(h, report.equal) for h, report in verdict.gradients] == [(first, False), (fastest[1], True)]


def test_where_nothing_can_be_compared_the_fastest_wins(store: Store, machine: Machine) -> None:
    machine.computes = False
    verdict = search(store, machine, trials=10)
    assert verdict.best_hash == fitting_by_time(store, machine, 2000)[0]
    assert [(report.equal, report.compared) for _, report in verdict.gradients] == [(False, False)]


def test_no_plan_wins_if_the_gradients_of_all_differ(store: Store, machine: Machine) -> None:
    machine.unequal.update(preset_hash(name, machine) for name in ("full", "sac"))
    verdict = search(store, machine, trials=3)
    assert (verdict.best_hash, verdict.best_toml) == (None, None)
    assert {h for h, _ in verdict.gradients} == machine.unequal


def test_nothing_over_the_budget_wins_however_fast(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, budget="1300B", trials=6)
    by_hash = {entry.plan_hash: entry for entry in verdict.entries}
    assert verdict.best_hash is not None
    assert by_hash[NO_AC_HASH].relative_step_time < by_hash[verdict.best_hash].relative_step_time
    best = next(t for t in store.trials("a") if t.plan_hash == verdict.best_hash)
    assert best.measurement.peak_bytes is not None
    assert best.measurement.peak_bytes <= 1300


def test_the_best_plan_is_written_with_where_it_comes_from(store: Store, machine: Machine) -> None:
    verdict = search(store, machine, verdict_rounds=4)
    assert verdict.best_toml is not None
    plan = parse_plan(verdict.best_toml)
    assert plan_hash(plan) == verdict.best_hash
    trial = next(t for t in store.trials("a") if t.plan_hash == verdict.best_hash)
    entry = next(e for e in verdict.entries if e.plan_hash == verdict.best_hash)
    assert dump_plan(plan, with_provenance=False) == trial.plan_toml
    provenance = tomllib.loads(verdict.best_toml)["provenance"]
    date = provenance.pop("date")
    assert date.endswith("+00:00")
    assert provenance.pop("actune_version")
    assert provenance == {
        "plan_hash": verdict.best_hash,
        "target": "dense-tiny",
        "target_fingerprint": machine.fingerprint,
        "budget_bytes": 2000,
        "peak_bytes": trial.measurement.peak_bytes,
        "step_time_s": median_step_time_s(entry.samples),
        "relative_step_time": entry.relative_step_time,
        "reference_plan_hash": verdict.reference_hash,
        "device": "cpu",
        "device_name": "A processor",
        "torch_version": "2.11.0",
        "study": "a",
        "trial": trial.number,
    }


def test_comparison_that_dies_is_tried_again_without_presets_over_the_budget(store: Store, machine: Machine) -> None:
    def die_with_no_ac(request: MeasureRounds) -> None:
        if any(plan_hash(parse_plan(toml)) == NO_AC_HASH for toml in request.plan_tomls):
            raise TargetError("the worker was killed by SIGKILL")

    machine.before_rounds = die_with_no_ac
    verdict = search(store, machine)
    assert NO_AC_HASH not in [entry.plan_hash for entry in verdict.entries]
    assert verdict.best_hash is not None


def test_a_reference_that_is_over_the_budget_in_the_long_run_stays_the_reference(
    store: Store, machine: Machine
) -> None:
    full = preset_hash("full", machine)
    machine.endurance[full] = Measurement(Outcome.OK, 2001)
    machine.can_be_profiled = True

    def die_with_no_ac(request: MeasureRounds) -> None:
        if any(plan_hash(parse_plan(toml)) == NO_AC_HASH for toml in request.plan_tomls):
            raise TargetError("the worker was killed by SIGKILL")

    machine.before_rounds = die_with_no_ac
    # Nothing but the reference is known to fit when the trials end, and it does not over more steps.
    verdict = search(store, machine, budget="1240B", sampler="thompson", trials=9)
    assert verdict.reference_hash == full
    assert verdict.entries[0].plan_hash == full
    assert verdict.entries[0].relative_step_time == 1.0
    assert verdict.best_hash is None


def test_comparison_that_dies_with_plans_that_fit_is_an_error(store: Store, machine: Machine) -> None:
    def die(request: MeasureRounds) -> None:
        raise TargetError("the worker was killed by SIGKILL")

    machine.before_rounds = die
    with pytest.raises(TargetError, match="SIGKILL"):
        search(store, machine, trials=3, budget="100%")
    assert store.verdict("a") is None


def test_on_a_card_nothing_over_the_budget_is_compared(store: Store, machine: Machine) -> None:
    machine.environment = dataclasses.replace(machine.environment, device="cuda", device_total_bytes=2200)
    search(store, machine)
    assert NO_AC_HASH not in machine.rounds[0]


def test_no_trial_that_was_timed_leaves_no_best(store: Store, machine: Machine) -> None:
    yaml = SPACE.replace("[full, none, sac]", "[full]")
    machine.outcomes[preset_hash("full", machine)] = Measurement(Outcome.TIMEOUT, message="no reply")
    verdict = search(store, machine, space_yaml=yaml, trials=1)
    assert (verdict.reference_hash, verdict.entries, verdict.best_hash) == (None, (), None)
    assert (verdict.smallest_peak_bytes, verdict.smallest_peak_hash) == (None, None)
