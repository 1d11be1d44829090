"""Copies of studies: nothing is lost, nothing is left half done, and a search goes on with the copy."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from actune.cli import run
from actune.errors import StorageError, UsageError
from actune.plan import parse_plan
from actune.search import copy_whole_study
from actune.store import Store
from actune.store.schema import metadata
from tests.search.fakes import SETTINGS, Machine, search
from tests.search.test_recovery import dying

from .examples import ENVIRONMENT, TARGET, prediction

FROM_TO = [
    pytest.param("sqlite", "sqlite", marks=pytest.mark.faults),
    ("sqlite", "postgresql"),
    ("postgresql", "sqlite"),
    pytest.param("postgresql", "postgresql", marks=pytest.mark.faults),
]


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> Iterator[Store]:
    """A database of that kind, with tables and without studies of actune's."""
    if kind == "sqlite":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / f"{name}.db")
        with Store.open(f"sqlite:///{tmp_path}/{name}.db", create=True) as store:
            yield store
        return
    server = request.getfixturevalue("server")
    database = server.new_database(template=request.getfixturevalue("template"))
    with Store.open(server.url(database), create=True) as store:
        yield store
    server.drop(database)


@pytest.fixture
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two files."""
    with opened("sqlite", request, tmp_path, "a") as source, opened("sqlite", request, tmp_path, "b") as destination:
        yield source, destination


def of_optuna(store: Store, name: str) -> list[object]:
    """All that Optuna itself says of a study, ids aside."""
    storage = optuna.storages.RDBStorage(store.url)
    study = optuna.load_study(storage=storage, study_name=name)
    system_attrs = storage.get_study_system_attrs(study._study_id)
    found: list[object] = [study.directions, study.user_attrs, system_attrs]
    for trial in study.trials:
        said = {key: value for key, value in vars(trial).items() if key != "_trial_id"}
        # As text, since NaN is not equal to itself.
        found.append(said | {"intermediate_values": repr(sorted(trial.intermediate_values.items()))})
    storage.remove_session()
    storage.engine.dispose()
    return found


def of_actune(store: Store, name: str) -> list[object]:
    study = store.study(name)
    record = [getattr(study, each) for each in study.__slots__ if each != "name"]
    return [record, store.trials(name), store.predictions(name), store.verdict(name)]


def interrupted(store: Store, machine: Machine, **settings: Any) -> None:
    """A search that died while a trial ran, others waited, one had failed and predictions were there."""
    machine.can_be_profiled = True
    with dying(Store, "record_trial", call=4, death=KeyboardInterrupt):
        search(store, machine, trials=9, **settings)


@pytest.mark.parametrize(("of", "to"), FROM_TO)
def test_a_copy_has_all_and_goes_on_as_the_study_does(
    request: pytest.FixtureRequest, tmp_path: Path, of: str, to: str
) -> None:
    machine = Machine()
    with (
        opened(of, request, tmp_path, "source") as source,
        opened(to, request, tmp_path, "destination") as destination,
    ):
        interrupted(source, machine)
        # Something in each of Optuna's tables that actune leaves empty.
        storage = optuna.storages.RDBStorage(source.url)
        theirs = optuna.load_study(storage=storage, study_name="a")
        theirs.set_user_attr("who", "größer")
        storage.set_study_system_attr(theirs._study_id, "system", {"x": [1, None]})
        drawn = theirs.ask({"x": optuna.distributions.FloatDistribution(1e-9, 1, log=True)})
        drawn.report(float("nan"), step=3)
        drawn.report(float("inf"), step=4)
        theirs.tell(drawn, state=optuna.trial.TrialState.PRUNED)
        storage.remove_session()
        storage.engine.dispose()

        before = (of_actune(source, "a"), of_optuna(source, "a"))
        copied = copy_whole_study(source, "a", destination, "a")
        assert (of_actune(destination, "a"), of_optuna(destination, "a")) == before
        assert (of_actune(source, "a"), of_optuna(source, "a")) == before
        states = {trial["state"] for trial in before[1][3:]}  # type: ignore[index]
        assert states >= {optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.COMPLETE}
        assert (copied.trials, copied.measurements, copied.optuna_trials) == (3, 3, len(before[1]) - 3)
        assert copied.predictions == len(source.predictions("a")) > 0
        assert not copied.has_verdict

        other = Machine(can_be_profiled=True)
        ends = [search(store, at, trials=9) for store, at in ((source, machine), (destination, other))]
        assert ends[0].best_hash == ends[1].best_hash is not None
        plans = [[trial.plan_hash for trial in store.trials("a")] for store in (source, destination)]
        assert plans[0] == plans[1]
        assert machine.measured[-len(other.measured) :] == other.measured


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_under_another_name_its_plans_name_the_copy(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    with opened(kind, request, tmp_path, "a") as store:
        machine = Machine()
        verdict = search(store, machine, budget="2000B,1500B")
        copied = copy_whole_study(store, "a", store, "b")
        assert (copied.measurements, copied.has_verdict) == (0, True)
        copy = store.verdict("b")
        assert copy is not None
        assert of_actune(store, "a")[:3] == of_actune(store, "b")[:3]
        assert of_optuna(store, "a") == of_optuna(store, "b")
        for toml, of_copy in zip(
            [verdict.best_toml, *(each.best_toml for each in verdict.budgets)],
            [copy.best_toml, *(each.best_toml for each in copy.budgets)],
            strict=True,
        ):
            assert toml is not None
            assert of_copy == toml.replace('study = "a"', 'study = "b"') != toml
            assert parse_plan(of_copy) == parse_plan(toml)
        assert search(store, machine, "b", budget="2000B,1500B") == copy  # it is finished, as the study is


def test_every_table_of_a_study_is_copied(stores: tuple[Store, Store]) -> None:
    """Also one that a later schema adds."""
    source, destination = stores
    search(source, Machine(can_be_profiled=True))
    copy_whole_study(source, "a", destination, "a")
    for table in metadata.sorted_tables:
        counts = []
        for store in (source, destination):
            with store._reading() as connection:
                counts.append(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar())
        assert counts[0] == counts[1], table.name
        assert counts[0], table.name


def test_a_second_copy_shares_the_measurements_of_the_first(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    search(source, Machine())
    first = copy_whole_study(source, "a", destination, "a")
    second = copy_whole_study(source, "a", destination, "b")
    assert (first.measurements, second.measurements) == (6, 0)
    assert destination.trials("a") == destination.trials("b")


def test_a_study_that_optuna_does_not_know_yet(stores: tuple[Store, Store]) -> None:
    """Its search died before the first trial."""
    source, destination = stores
    source.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
    source.save_predictions("a", [prediction(0)])
    assert copy_whole_study(source, "a", destination, "a").optuna_trials == 0
    assert of_actune(destination, "a") == of_actune(source, "a")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_failure_at_any_step_leaves_nothing_of_the_copy(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    steps: list[str] = []
    fails_at = 0

    def step(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        steps.append(statement)
        if len(steps) == fails_at:
            raise OSError(28, "No space left on device")

    with (
        opened("sqlite", request, tmp_path, "source") as source,
        opened(kind, request, tmp_path, "destination") as destination,
        opened(kind, request, tmp_path, "another") as another,
    ):
        interrupted(source, Machine())
        search(destination, Machine(), "theirs", trials=3)  # so that there is something to be kept
        before = everything(destination)
        event.listen(another._engine, "before_cursor_execute", step)
        copy_whole_study(source, "a", another, "a")
        event.listen(destination._engine, "before_cursor_execute", step)
        inserts = [number for number, statement in enumerate(steps, start=1) if statement.startswith("INSERT")]
        assert len(inserts) > 20
        for number in (1, 5, *inserts[:12], *inserts[12::5]):
            steps.clear()
            fails_at = number
            with pytest.raises(StorageError, match="the disk or your quota is full"):
                copy_whole_study(source, "a", destination, "a")
            fails_at = 0
            assert everything(destination) == before
        copy_whole_study(source, "a", destination, "a")
        assert of_actune(destination, "a") == of_actune(source, "a")
        assert of_optuna(destination, "a") == of_optuna(source, "a")


def everything(store: Store) -> dict[str, int]:
    """How many rows each table has."""
    with store._reading() as connection:
        names = sa.inspect(connection).get_table_names()
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
            for name in names
        }


KILLED_BEFORE_COMMIT = """
import os, signal, sys
from sqlalchemy import event
from actune.search import copy_whole_study
from actune.store import Store
with Store.open(sys.argv[1], create=False) as source, Store.open(sys.argv[2], create=True) as destination:
    def die(connection):
        if connection.get_execution_options().get("actune_writes"):
            os.kill(os.getpid(), signal.SIGKILL)
    source.study("a")
    event.listen(destination._engine, "commit", die)
    copy_whole_study(source, "a", destination, "a")
"""


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_before_its_end_it_leaves_nothing_of_the_copy(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    with (
        opened("sqlite", request, tmp_path, "source") as source,
        opened(kind, request, tmp_path, "destination") as destination,
    ):
        search(source, Machine())
        process = subprocess.run([sys.executable, "-c", KILLED_BEFORE_COMMIT, source.url, destination.url], check=False)
        assert process.returncode == -signal.SIGKILL
        assert destination.studies() == []
        copy_whole_study(source, "a", destination, "a")
        assert of_optuna(destination, "a") == of_optuna(source, "a")


def test_while_a_search_runs_a_copy_is_of_one_moment(stores: tuple[Store, Store]) -> None:
    """At each trial of the source; each copy is what a coordinator that died there would have left."""
    machine = Machine()
    source, destination = stores
    names: list[str] = []

    def copy(_: str) -> None:
        with Store.open(source.url, create=False) as reader:
            names.append(f"copy-{len(names)}")
            copy_whole_study(reader, "a", destination, names[-1])

    machine.before_trial = copy
    end = search(source, machine)
    assert len(names) == 6
    for count, name in enumerate(names):
        assert destination.trials(name) == source.trials("a")[:count]
        assert search(destination, Machine(), name).best_hash == end.best_hash


def test_a_name_that_is_taken_is_refused(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    search(source, Machine())
    search(destination, Machine(), "a", trials=3)
    storage = optuna.storages.RDBStorage(destination.url)
    optuna.create_study(storage=storage, study_name="theirs")
    storage.remove_session()
    storage.engine.dispose()
    before = everything(destination)
    for place in (source, destination):
        with pytest.raises(UsageError, match=r"study 'a' exists already at .* with --as"):
            copy_whole_study(source, "a", place, "a")
    with pytest.raises(UsageError, match=r"Optuna has a study 'theirs' at .* none of actune's"):
        copy_whole_study(source, "a", destination, "theirs")
    with pytest.raises(UsageError, match="is not usable"):
        copy_whole_study(source, "a", destination, "../b")
    with pytest.raises(UsageError, match="no study 'none'"):
        copy_whole_study(source, "none", destination, "b")
    assert everything(destination) == before


def test_tables_of_another_version_of_optuna_are_refused(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = stores
    search(source, Machine(), trials=3)
    with source._writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(StorageError, match=r"version '.*' there, and 'v0\.9\.0\.a' where the study is"):
        copy_whole_study(source, "a", destination, "a")
    assert destination.studies() == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], server_url: str) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with Store.open(url, create=True) as store:
        search(store, Machine())
    assert run(["copy-study", "a", "--storage", url, "--to", server_url, "--as", "b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["to"].startswith("postgresql+psycopg://tester:***@/")
    del document["to"], document["predictions"]
    assert document == {
        "study": "a",
        "copy": "b",
        "trials": 6,
        "measurements": 6,
        "finished": True,
        "optuna_trials": 6,
    }
    assert run(["copy-study", "b", "--storage", server_url, "--to", f"sqlite:///{tmp_path}/new/b.db"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("copied study 'b' to ")
    assert "as 'b': 6 trials (6 measurements that were not there yet), 6 trials of Optuna's" in out
    assert "s3cret" not in out
    assert run(["copy-study", "c", "--storage", url, "--to", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert "no study 'c'" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
    assert run(["copy-study", "a", "--storage", url]) == 2
    assert "--to" in capsys.readouterr().err


def test_a_study_of_that_name_can_not_begin_meanwhile(stores: tuple[Store, Store]) -> None:
    source, destination = stores
    with Store.open(destination.url, create=True) as other:
        search(source, Machine(), trials=3)
        with other.locked("a"), pytest.raises(Exception, match="is being searched"):
            copy_whole_study(source, "a", destination, "a")
        assert destination.studies() == []
