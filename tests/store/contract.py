"""What any storage has to do. A new kind of database passes StoreTestCase, given a fixture `url` of an empty one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import event

from actune.errors import StorageError, UsageError
from actune.records import Measurement, Outcome
from actune.store import Store, environment_fingerprint

from .examples import (
    ENVIRONMENT,
    FAILED,
    NO_VERDICT,
    REFERENCE_HASH,
    SETTINGS,
    TARGET,
    VERDICT,
    measurement,
    prediction,
    trial,
)

FINGERPRINT = environment_fingerprint(ENVIRONMENT)


def record(store: Store, study: str, *args: object, **kwargs: object) -> None:
    """A trial as `examples.trial` makes it, timed against the usual reference, without a cap."""
    store.record_trial(study, trial(*args, **kwargs), reference_hash=REFERENCE_HASH, budget_bytes=None)  # type: ignore[arg-type]


class StoreTestCase:
    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        with Store.open(url, create=True) as store:
            store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
            yield store

    def find(
        self, store: Store, plan_hash: str, *, reference: str | None = REFERENCE_HASH, budget_bytes: int | None = None
    ) -> Measurement | None:
        return store.find_measurement(TARGET.fingerprint, FINGERPRINT, plan_hash, reference, budget_bytes=budget_bytes)

    # Studies

    def test_study_comes_back_as_created_also_after_reopening(self, url: str, store: Store) -> None:
        other = replace(ENVIRONMENT, device="cuda", device_total_bytes=2**37)
        settings = replace(SETTINGS, timeout_s=0.1 + 0.2)
        created = store.create_study("b", settings, TARGET, other)
        assert (created.settings, created.target, created.environment) == (settings, TARGET, other)
        assert (created.budget_bytes, created.reference_hash) == (None, None)
        assert created.created_at.endswith("+00:00")
        assert store.study("b") == created
        store.close()
        with Store.open(url, create=False) as again:
            assert again.study("b") == created

    def test_updates_change_only_what_they_name(self, store: Store) -> None:
        created = store.study("a")
        other = store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        store.set_budgets("a", (2**40 + 1, 7))
        known = replace(created, budget_bytes=2**40 + 1, budgets_bytes=(2**40 + 1, 7))
        assert store.study("a") == known
        store.set_reference("a", REFERENCE_HASH)
        more = replace(SETTINGS, trials=99)
        store.update_settings("a", more)
        assert store.study("a") == replace(known, reference_hash=REFERENCE_HASH, settings=more)
        assert store.study("b") == other

    def test_second_study_of_a_name_is_refused(self, store: Store) -> None:
        with pytest.raises(UsageError, match=r"study 'a' exists already .*actune resume a"):
            store.create_study("a", replace(SETTINGS, trials=1), TARGET, ENVIRONMENT)
        assert store.study("a").settings == SETTINGS

    @pytest.mark.parametrize("name", ["", ".a", "a/b", "../a", "a b", "a\n", "ä", "a" * 101])
    def test_name_that_is_no_name_is_refused(self, store: Store, name: str) -> None:
        with pytest.raises(UsageError, match=r"is not usable\. Expected"):
            store.create_study(name, SETTINGS, TARGET, ENVIRONMENT)

    def test_missing_study_names_the_nearest_and_lists_all(self, store: Store) -> None:
        store.create_study("llama3-8b", SETTINGS, TARGET, ENVIRONMENT)
        assert store.has_study("llama3-8b")
        assert not store.has_study("llama-8b")
        with pytest.raises(UsageError, match=r"no study 'llama-8b'.* Did you mean 'llama3-8b'\?.*: llama3-8b, a\."):
            store.study("llama-8b")
        for call in (
            lambda: store.set_budgets("x", (1,)),
            lambda: store.trials("x"),
            lambda: store.verdict("x"),
            lambda: store.save_verdict("x", VERDICT),
            lambda: store.predictions("x"),
            lambda: store.save_predictions("x", []),
            lambda: record(store, "x", 0),
            lambda: store.amend_trial("x", trial(0), reference_hash=None, budget_bytes=None),
        ):
            with pytest.raises(UsageError, match="no study 'x'"):
                call()

    def test_store_without_studies_says_so(self, url: str) -> None:
        with Store.open(url, create=True) as store:
            assert store.studies() == []
            with pytest.raises(UsageError, match="no studies yet"):
                store.study("a")

    # Trials

    def test_an_amended_trial_has_another_measurement_and_those_who_took_it_over_keep_theirs(
        self, store: Store
    ) -> None:
        record(store, "a", 0)
        record(store, "a", 1)
        store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        first, other = store.trials("a")
        record(store, "b", 0, reused=True)
        over = replace(first.measurement, outcome=Outcome.OVER_BUDGET, peak_bytes=2**41, message="over in step 5")
        store.amend_trial("a", replace(first, measurement=over), reference_hash=REFERENCE_HASH, budget_bytes=2**40)
        assert store.trials("a") == [replace(first, measurement=over), other]
        assert [taken.measurement for taken in store.trials("b")] == [first.measurement]
        with pytest.raises(StorageError, match=r"study 'a' has no trial 9"):
            store.amend_trial("a", trial(9), reference_hash=REFERENCE_HASH, budget_bytes=None)

    def test_trials_come_back_equal_and_by_number(self, store: Store) -> None:
        bare = replace(trial(5, measured=Measurement(Outcome.OK, pairs=())), preset=None)
        recorded = [trial(3), trial(0, measured=FAILED), bare, trial(1)]
        for item in recorded:
            store.record_trial("a", item, reference_hash=None, budget_bytes=1)
        assert store.trials("a") == sorted(recorded, key=lambda item: item.number)
        assert store.plan_toml(trial(3).plan_hash) == trial(3).plan_toml

    def test_trials_belong_to_their_study(self, store: Store) -> None:
        store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        record(store, "a", 0)
        record(store, "b", 0, plan="b" * 16)
        assert store.trials("a") == [trial(0)]
        assert store.trials("b") == [trial(0, plan="b" * 16)]

    def test_same_trial_again_changes_nothing(self, store: Store) -> None:
        record(store, "a", 0)
        record(store, "a", 0)
        assert store.trials("a") == [trial(0)]

    def test_other_trial_of_a_number_is_refused(self, store: Store) -> None:
        record(store, "a", 0)
        with pytest.raises(StorageError, match="trial 0 of study 'a' is stored already"):
            record(store, "a", 0, plan="b" * 16)
        assert store.trials("a") == [trial(0)]

    @pytest.mark.parametrize("broken", [{"compile_s": float("nan")}, {"compile_s": float("inf")}])
    def test_number_that_is_not_finite_is_refused(self, store: Store, broken: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            record(store, "a", 0, measured=replace(measurement(), **broken))
        assert store.trials("a") == []

    def test_plan_of_a_known_hash_with_another_text_is_refused_as_a_whole(self, store: Store) -> None:
        record(store, "a", 0)
        impostor = replace(trial(1, plan=trial(0).plan_hash), plan_toml="schema = 2\n")
        with pytest.raises(ValueError, match="stored with another text"):
            store.record_trial("a", impostor, reference_hash=None, budget_bytes=None)
        assert store.trials("a") == [trial(0)]

    def test_unknown_plan(self, store: Store) -> None:
        with pytest.raises(UsageError, match="no plan with the hash 'feed'"):
            store.plan_toml("feed")

    # Reuse

    def test_reused_measurement_is_shared_across_studies(self, store: Store) -> None:
        record(store, "a", 0)
        store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        found = self.find(store, trial(0).plan_hash)
        assert found == measurement(0)
        again = trial(7, plan=trial(0).plan_hash, reused=True, measured=found)
        store.record_trial("b", again, reference_hash=REFERENCE_HASH, budget_bytes=None)
        assert store.trials("b") == [again]

    def test_reuse_of_what_was_never_measured_is_refused(self, store: Store) -> None:
        record(store, "a", 0)
        with pytest.raises(ValueError, match="no measurement equal"):
            record(store, "a", 1, plan=trial(0).plan_hash, reused=True, measured=measurement(99))
        with pytest.raises(ValueError, match="no measurement equal"):
            record(store, "a", 1, reused=True)
        assert store.trials("a") == [trial(0)]

    def test_measurement_is_found_only_for_all_of_its_key(self, store: Store) -> None:
        record(store, "a", 0)
        plan_hash = trial(0).plan_hash
        assert self.find(store, plan_hash) is not None
        assert self.find(store, "b" * 16) is None
        assert self.find(store, plan_hash, reference=None) is None
        assert self.find(store, plan_hash, reference="b" * 16) is None
        other = environment_fingerprint(replace(ENVIRONMENT, threads=5))
        assert store.find_measurement(TARGET.fingerprint, other, plan_hash, REFERENCE_HASH, budget_bytes=None) is None
        assert store.find_measurement("other", FINGERPRINT, plan_hash, REFERENCE_HASH, budget_bytes=None) is None

    def test_measurement_under_other_allocator_settings_is_not_found(self, store: Store) -> None:
        record(store, "a", 0)
        settings = ["", "expandable_segments:True"]
        others = {environment_fingerprint(replace(ENVIRONMENT, allocator=allocator)) for allocator in settings}
        assert len(others | {FINGERPRINT}) == 3
        for other in others:
            found = store.find_measurement(
                TARGET.fingerprint, other, trial(0).plan_hash, REFERENCE_HASH, budget_bytes=None
            )
            assert found is None

    def test_measurement_without_a_reference_is_found_by_none(self, store: Store) -> None:
        store.record_trial("a", trial(0), reference_hash=None, budget_bytes=None)
        assert self.find(store, trial(0).plan_hash, reference=None) == measurement(0)

    def test_newest_settled_measurement_is_found(self, store: Store) -> None:
        plan = trial(0).plan_hash
        for number, outcome in enumerate((Outcome.OK, Outcome.OK, Outcome.CRASHED, Outcome.TIMEOUT, Outcome.ERROR)):
            record(store, "a", number, plan=plan, measured=measurement(number, outcome=outcome))
        assert self.find(store, plan) == measurement(1)

    @pytest.mark.parametrize(
        ("outcome", "peak_bytes", "its_budget_bytes", "budget_bytes", "holds"),
        [
            (Outcome.OK, 90, 100, None, True),
            (Outcome.OK, 90, 100, 50, True),
            (Outcome.OVER_BUDGET, 110, 100, 100, True),
            (Outcome.OVER_BUDGET, 110, 100, 105, True),
            (Outcome.OVER_BUDGET, 110, 100, 110, False),
            (Outcome.OVER_BUDGET, 110, 100, None, False),
            (Outcome.OVER_BUDGET, None, 100, 100, True),
            (Outcome.OVER_BUDGET, None, 100, 101, False),
            (Outcome.OOM, None, None, None, True),
            (Outcome.OOM, None, None, 50, True),
            (Outcome.OOM, None, 100, 100, True),
            (Outcome.OOM, None, 100, 101, False),
            (Outcome.OOM, 70, 100, None, False),
        ],
    )
    def test_outcome_is_reused_only_where_a_new_run_would_end_the_same(
        self,
        store: Store,
        outcome: Outcome,
        peak_bytes: int | None,
        its_budget_bytes: int | None,
        budget_bytes: int | None,
        holds: bool,
    ) -> None:
        measured = measurement(outcome=outcome, peak_bytes=peak_bytes)
        item = trial(0, measured=measured)
        store.record_trial("a", item, reference_hash=REFERENCE_HASH, budget_bytes=its_budget_bytes)
        assert self.find(store, item.plan_hash, budget_bytes=budget_bytes) == (measured if holds else None)

    def test_tighter_cap_does_not_hide_an_older_answer(self, store: Store) -> None:
        plan = trial(0).plan_hash
        record(store, "a", 0, plan=plan)
        oom = trial(1, plan=plan, measured=Measurement(Outcome.OOM))
        store.record_trial("a", oom, reference_hash=REFERENCE_HASH, budget_bytes=10)
        assert self.find(store, plan, budget_bytes=10) == Measurement(Outcome.OOM)
        assert self.find(store, plan, budget_bytes=2**40) == measurement(0)

    def test_lost_race_comes_back_and_is_never_found(self, store: Store) -> None:
        plan = trial(0).plan_hash
        lost = trial(0, measured=replace(measurement(0), lost_race=True))
        store.record_trial("a", lost, reference_hash=REFERENCE_HASH, budget_bytes=None)
        assert store.trials("a") == [lost]
        assert self.find(store, plan) is None
        record(store, "a", 1, plan=plan)
        store.record_trial("a", replace(lost, number=2), reference_hash=REFERENCE_HASH, budget_bytes=None)
        assert self.find(store, plan) == measurement(1)

    # Predictions

    def test_predictions_come_back_equal_and_by_peak(self, store: Store) -> None:
        no_room = prediction(0, preset="none", peak_bytes=None, step_time_s=None)
        large, small, slower = prediction(1), prediction(2, peak_bytes=7), prediction(3, peak_bytes=7, step_time_s=1.0)
        store.save_predictions("a", [no_room, large])
        store.save_predictions("a", [slower, small])
        assert store.predictions("a") == (small, slower, large, no_room)
        assert store.plan_toml(small.plan_hash) == small.plan_toml

    def test_later_prediction_of_a_plan_has_the_numbers_and_keeps_name_and_place(self, store: Store) -> None:
        store.save_predictions("a", [prediction(0, preset="sac"), prediction(0, on_frontier=True)])
        store.save_predictions("a", [prediction(0, preset="split", peak_bytes=5, step_time_s=2.5)])
        assert store.predictions("a") == (prediction(0, preset="sac", peak_bytes=5, step_time_s=2.5, on_frontier=True),)
        store.save_predictions("a", [prediction(0, peak_bytes=None, step_time_s=None)])
        assert store.predictions("a") == (prediction(0, preset="sac", peak_bytes=None, step_time_s=None),)

    def test_predictions_belong_to_their_study_and_share_plans_with_trials(self, store: Store) -> None:
        store.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        store.save_predictions("a", [prediction(0)])
        record(store, "b", 0)
        store.save_predictions("b", [prediction(0, peak_bytes=1), prediction(1)])
        assert store.predictions("a") == (prediction(0),)
        assert store.predictions("b") == (prediction(0, peak_bytes=1), prediction(1))

    def test_prediction_of_a_known_hash_with_another_text_is_refused_as_a_whole(self, store: Store) -> None:
        record(store, "a", 0)
        impostor = replace(prediction(0), plan_toml="schema = 2\n")
        with pytest.raises(ValueError, match="stored with another text"):
            store.save_predictions("a", [prediction(1), impostor])
        assert store.predictions("a") == ()

    @pytest.mark.parametrize("step_time_s", [float("nan"), float("inf"), -1.0])
    def test_prediction_that_is_no_time_can_not_be_made(self, step_time_s: float) -> None:
        with pytest.raises(ValueError, match="Expected a finite number"):
            prediction(0, step_time_s=step_time_s)

    def test_frontier_has_numbers(self) -> None:
        with pytest.raises(ValueError, match="on the frontier without"):
            prediction(0, peak_bytes=None, on_frontier=True)

    # Verdicts and lists

    @pytest.mark.parametrize("verdict", [VERDICT, NO_VERDICT])
    def test_verdict_comes_back_equal_and_replaces_the_last(self, store: Store, verdict: object) -> None:
        assert store.verdict("a") is None
        store.save_verdict("a", replace(VERDICT, best_toml="schema = 1\n", trials=1))
        store.save_verdict("a", verdict)  # type: ignore[arg-type]
        assert store.verdict("a") == verdict

    def test_verdict_that_is_not_finite_is_refused(self, store: Store) -> None:
        entry = replace(VERDICT.entries[0], relative_low=float("nan"))
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.save_verdict("a", replace(VERDICT, entries=(entry,)))
        assert store.verdict("a") is None

    def test_list_of_studies(self, store: Store) -> None:
        for number in range(4):
            record(store, "a", number, measured=measurement(number, peak_bytes=1000 + number))
        # The best plan again, with another peak: the verdict's trial is the one that counts.
        record(store, "a", 4, plan=trial(3).plan_hash, measured=measurement(9, peak_bytes=5))
        store.save_verdict("a", VERDICT)
        store.create_study("running", SETTINGS, TARGET, ENVIRONMENT)
        record(store, "running", 0)
        store.create_study("infeasible", SETTINGS, TARGET, ENVIRONMENT)
        store.save_verdict("infeasible", NO_VERDICT)
        decided, running, infeasible = store.studies()
        assert decided.study == store.study("a")
        assert (decided.finished_trials, decided.best_hash) == (5, VERDICT.best_hash)
        assert (decided.best_relative_step_time, decided.best_peak_bytes) == (1.1 * 1.1, 1003)
        assert decided.decided_at is not None
        assert decided.judged_trials == VERDICT.trials
        assert (running.study.name, running.finished_trials) == ("running", 1)
        assert running.judged_trials is None
        assert (running.decided_at, running.best_hash, running.best_peak_bytes) == (None, None, None)
        assert (infeasible.finished_trials, infeasible.best_hash) == (0, None)
        assert infeasible.decided_at is not None

    def test_another_process_view_sees_each_write(self, url: str, store: Store) -> None:
        with Store.open(url, create=False) as reader:
            for number in range(3):
                record(store, "a", number)
                assert len(reader.trials("a")) == number + 1

    def test_reading_many_trials_takes_no_query_per_trial(self, store: Store) -> None:
        statements = 0

        def count(*_: object) -> None:
            nonlocal statements
            statements += 1

        event.listen(store._engine, "before_cursor_execute", count)
        used = []
        for number in range(12):
            record(store, "a", number)
            if number in (0, 11):
                statements = 0
                assert len(store.trials("a")) == number + 1
                used.append(statements)
        assert used[0] == used[1]
