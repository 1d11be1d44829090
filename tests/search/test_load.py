"""What lies between two trials takes as many statements and parses as many plans after many trials as after few."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest

from actune.plan import Plan, parse_plan
from actune.search import ledger as ledger_module
from actune.search.race import race_for
from actune.search.study import PlanStudy
from actune.store import Store
from tests.report.test_load import counted

from .fakes import Machine, mixture, search
from .test_ledger import FASTER, NOISY, REFERENCE, TIMED_PAIRS, TWINS, Study

TRIALS = 24
CALLS = ((PlanStudy, "ask"), (PlanStudy, "tell"), (Store, "find_measurement"), (Store, "record_trial"))


@pytest.mark.parametrize("sampler", ["thompson", "random"])
def test_asking_recording_and_telling_take_no_more_after_many_trials(store: Store, sampler: str) -> None:
    parsed: list[str] = []
    taken: dict[str, list[int]] = {}

    def parse(text: str) -> Plan:
        parsed.append(text)
        return parse_plan(text)

    def noting(owner: type, name: str, statements: list[str]) -> Any:
        original = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            before = len(statements)
            found = original(*args, **kwargs)
            taken.setdefault(name, []).append(len(statements) - before)
            return found

        return patch.object(owner, name, noted)

    with counted() as statements, ExitStack() as patches:
        patches.enter_context(patch.object(ledger_module, "stored_plan", parse))
        for owner, name in CALLS:
            patches.enter_context(noting(owner, name, statements))
        machine = Machine(structure=mixture(8), can_be_profiled=True)
        search(store, machine, sampler=sampler, trials=TRIALS, tolerance=0.0)
    trials = len(store.trials("a"))
    assert trials >= 20
    assert len(parsed) == trials  # each its own plan, once
    for _, name in CALLS:
        half = len(taken[name]) // 2
        assert half >= 10
        assert max(taken[name][half:]) <= max(taken[name][:half]), name


def test_a_ledger_filled_one_by_one_says_what_one_filled_at_once_says(store: Store) -> None:
    study = Study(store, can_be_profiled=True)
    trials = []
    for number, plan in enumerate((REFERENCE, *TWINS, FASTER)):
        trials.append(study.measure(plan, noise=NOISY, off_by=1 + number / 100))
        so_far = study.ledger.fitting(10_000)
        at_once = ledger_module.Ledger(study.foresight, lambda sample: sample.step_time_s)
        for trial in trials:
            at_once.add(trial)
        at_once.set_reference(REFERENCE)
        assert [trial.number for trial in so_far] == [trial.number for trial in at_once.fitting(10_000)]
        assert [study.ledger.estimate(t) for t in trials] == pytest.approx([at_once.estimate(t) for t in trials])
        assert study.ledger.race(10_000, timed_pairs=TIMED_PAIRS) == race_for(
            trials,
            study.ledger.relative_step_times,
            10_000,
            lambda sample: sample.step_time_s,
            timed_pairs=TIMED_PAIRS,
        )
