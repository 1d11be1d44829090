"""Reading a study takes as many statements, and parses as many plans, however many trials and studies there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from actune.cli.render import render_studies, render_study
from actune.cli.shown_trials import ALL_UP_TO, FASTEST, LATEST, shown_trials
from actune.plan import Plan, Rule, Treatment, dump_plan, parse_plan, plan_hash
from actune.records import GradientReport, Measurement, Outcome, SamplePair, StepSample
from actune.report import studies_document, study_document
from actune.statistics import clock_of, relative_step_time
from actune.store import Store
from actune.study_records import TrialRecord, Verdict, VerdictEntry
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET

FEW, MANY = 5, 80


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that any engine executes."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(sa.engine.Engine, "before_cursor_execute", note)


def trial(number: int) -> TrialRecord:
    """The later, the faster; every fifth is over the budget."""
    plan = Plan((Rule((f"layers.{number}",), Treatment("full")),))
    pair = SamplePair(StepSample(2.0 - number / 1000, 1.0), StepSample(2.0, 1.0))
    over = number % 5 == 4
    measured = Measurement(Outcome.OVER_BUDGET, 2000) if over else Measurement(Outcome.OK, 900, pairs=(pair,) * 3)
    toml = dump_plan(plan, with_provenance=False)
    return TrialRecord(
        number, plan_hash(plan), toml, "full" if number == 0 else None, 1, False, measured, "2026", "2026"
    )


def fill(store: Store, name: str, trials: int) -> None:
    records = [trial(number) for number in range(trials)]
    reference = records[0].plan_hash
    store.create_study(name, SETTINGS, TARGET, ENVIRONMENT)
    store.set_budgets(name, (1000,))
    store.set_reference(name, reference)
    for record in records:
        store.record_trial(name, record, reference_hash=reference, budget_bytes=1000)
    entry = VerdictEntry(reference, 0, "full", (StepSample(2.0, 1.0),) * 3, 1.0, 1.0, 1.0)
    gradients = ((reference, GradientReport(True, True, 0.0, 0.0, "loss")),)
    store.save_verdict(
        name, Verdict(reference, (entry,), reference, records[0].plan_toml, gradients, 900, reference, trials)
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/actune.db", create=True) as store:
        fill(store, "few", FEW)
        fill(store, "many", MANY)
        yield store


def test_show_takes_as_many_statements_and_parses_as_many_plans_with_many_trials(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for name in ("few", "many"):
        parsed: list[str] = []

        def parse(text: str, parsed: list[str] = parsed) -> Plan:
            parsed.append(text)
            return parse_plan(text)

        with counted() as statements, patch("actune.cli.render.parse_plan", parse):
            render_study(study_document(store, name))
        seen.append((len(statements), len(parsed)))
    assert seen[0] == seen[1]
    assert seen[0][1] == 1  # the best plan's
    assert "exported" not in capsys.readouterr().err


def test_studies_takes_as_many_statements_with_many_studies(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for studies in (2, 12):
        with counted() as statements:
            render_studies(studies_document(store.studies()))
        counts.append(len(statements))
        for number in range(studies, 12):
            fill(store, f"s{number}", 1)
    assert counts[0] == counts[1]
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 + 1 + 12


def test_numbers_without_records_are_those_of_the_records(store: Store) -> None:
    clock = clock_of(ENVIRONMENT)
    shown = {entry["number"]: entry for entry in study_document(store, "many")["trials"]}
    for record in store.trials("many"):
        entry, pairs = shown[record.number], record.measurement.pairs
        assert entry["relative_step_time"] == relative_step_time(record.measurement, clock)
        assert (entry["pairs"], entry["step_time_s"]) == (len(pairs), pairs[0].plan.step_time_s if pairs else None)


def test_of_many_trials_a_person_is_shown_what_they_look_for(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    document = study_document(store, "many")
    render_study(document)
    text = " ".join(capsys.readouterr().out.split())
    shown = shown_trials(document["trials"], {document["presets"][0]["plan_hash"]})
    numbers = [entry["number"] for entry in shown]
    fitting = [number for number in range(MANY) if number % 5 != 4]
    assert numbers == sorted({0, *fitting[-FASTEST:], *range(MANY - LATEST, MANY)})
    assert f"{len(shown)} of {MANY} trials (64 ok, 16 over budget)" in text
    assert "`actune show many --all` shows every one" in text
    render_study(document, with_all=True)
    rows = capsys.readouterr().out.split("the final comparison")[0].splitlines()
    assert sum(line.split()[:1] in ([str(number)], [f"{number} *"]) for number in range(MANY) for line in rows) >= MANY
    few = document["trials"][:ALL_UP_TO]
    assert shown_trials(few, ()) == few
