"""The store in a PostgreSQL database, and all that can be wrong with one."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from actune.cli import run
from actune.cli.surroundings import _check_storage
from actune.errors import StorageError, UsageError
from actune.records import Measurement, Outcome
from actune.store import Store, setup_lock
from tests.postgresql import PASSWORD, PostgresServer, postgres_server
from tests.search.fakes import Machine, search
from tests.search.test_recovery import check_whole, dying

from .contract import StoreTestCase, record
from .examples import ENVIRONMENT, SETTINGS, TARGET, VERDICT, measurement, prediction, trial
from .test_processes import OPEN_AT_ONCE, TESTS, start


class TestPostgresStore(StoreTestCase):
    @pytest.fixture
    def url(self, server_url: str) -> str:
        return server_url


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Within it a StorageError is raised, whose message holds no password."""
    with pytest.raises(StorageError, match=message) as caught:
        yield
    assert PASSWORD not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# Behaviour that SQLite has and PostgreSQL has to be told


def test_the_drivers_name_may_be_left_out(server_url: str) -> None:
    for prefix in ("postgresql+psycopg:", "postgresql:", "postgres:"):
        with Store.open(server_url.replace("postgresql+psycopg:", prefix), create=True) as store:
            assert store.url == server_url


def test_schemas_of_one_database_are_stores_of_their_own(
    server: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen as libpq has it, by options in the URL or in the environment."""
    for team in ("red", "blue"):
        server.execute(f"CREATE SCHEMA {team}", database=database)
    monkeypatch.setenv("PGOPTIONS", "-c search_path=blue")
    with (
        Store.open(server.url(database) + "&options=-csearch_path%3Dred", create=True) as red,
        Store.open(server.url(database), create=True) as blue,
        red.locked("a"),
        blue.locked("a"),
    ):
        red.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        assert blue.studies() == []
        blue.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        assert len(red.studies()) == len(blue.studies()) == 1


def test_text_with_nul_is_stored_without(server_url: str) -> None:
    printed = Measurement(Outcome.CRASHED, message="a\0b", detail="\0")
    with Store.open(server_url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        for _ in range(2):
            record(store, "a", 0, measured=printed)
        (kept,) = store.trials("a")
    assert (kept.measurement.message, kept.measurement.detail) == ("a\ufffdb", "\ufffd")


def test_writers_that_store_the_same_plans_take_turns(server_url: str) -> None:
    """Each looks whether a plan is stored before it stores it."""
    names = ["a", "b", "c", "d"]
    with Store.open(server_url, create=True) as store:
        failures: list[BaseException] = []

        def write(name: str) -> None:
            try:
                store.create_study(name, SETTINGS, TARGET, ENVIRONMENT)
                for number in range(20):
                    record(store, name, number)
                    store.save_predictions(name, [prediction(number)])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for name in names:
            assert store.trials(name) == [trial(number) for number in range(20)]


def test_a_record_is_read_as_it_was_at_one_moment(server_url: str) -> None:
    """A trial and its timings are two queries; what is stored in between belongs to neither."""
    with Store.open(server_url, create=True) as store, Store.open(server_url, create=False) as writer:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        record(store, "a", 0)
        with store._reading() as connection:
            before = connection.exec_driver_sql("SELECT count(*) FROM actune_trials").scalar()
            record(writer, "a", 1)
            assert connection.exec_driver_sql("SELECT count(*) FROM actune_trials").scalar() == before == 1


def test_a_writer_that_hangs_is_not_waited_for_for_ever(server_url: str) -> None:
    with (
        Store.open(server_url, create=True) as other,
        Store.open(server_url, create=True, busy_timeout_s=0.1) as store,
    ):
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        with other._writing(), refused("is locked by another program .*lock timeout"):
            record(store, "a", 0)
        record(store, "a", 0)
        assert store.trials("a") == [trial(0)]


# Beside Optuna, from several processes, and with a search


def test_optuna_shares_the_database(server_url: str) -> None:
    with Store.open(server_url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        with setup_lock(server_url):
            storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
        study = optuna.create_study(storage=storage, study_name="a")
        for number in range(5):
            drawn = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            record(store, "a", drawn.number)
            study.tell(drawn, number)
        storage.engine.dispose()
    with Store.open(server_url, create=True) as store:
        store.save_verdict("a", VERDICT)
        assert store.trials("a") == [trial(number) for number in range(5)]
        storage = optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs)
        again = optuna.load_study(storage=storage, study_name="a")
        assert [item.value for item in again.trials] == [0, 1, 2, 3, 4]
        storage.engine.dispose()


@pytest.mark.faults
def test_processes_that_open_an_empty_database_at_once(server_url: str) -> None:
    names = ["a", "b"]
    writers = [start(OPEN_AT_ONCE, server_url, str(TESTS), name) for name in names]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    with Store.open(server_url, create=False) as store:
        assert sorted(summary.study.name for summary in store.studies()) == names
        for name in names:
            assert store.trials(name) == [trial(number) for number in range(10)]


def test_a_search_that_died_goes_on_and_ends_as_in_a_file(server_url: str, tmp_path: Path) -> None:
    machine = Machine()
    with Store.open(server_url, create=True) as store:
        with dying(Store, "record_trial", call=3, death=KeyboardInterrupt):
            search(store, machine)
        verdict = search(store, machine)
        check_whole(store, machine, 6)
        hashes = [measured.plan_hash for measured in store.trials("a")]
    with Store.open(f"sqlite:///{tmp_path}/a.db", create=True) as store:
        other = Machine()
        with dying(Store, "record_trial", call=3, death=KeyboardInterrupt):
            search(store, other)
        assert search(store, other).best_hash == verdict.best_hash
        assert [measured.plan_hash for measured in store.trials("a")] == hashes


# What can be wrong


def test_server_that_does_not_run(server: PostgresServer, database: str) -> None:
    url = f"postgresql://tester:s3cret@/{database}?host={server.folder}-none"
    for create in (False, True):
        with refused(r"can't be reached \(No such file or directory\)\. Check that the server runs"):
            Store.open(url, create=create)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("127.0.0.1:1/db", r"can't be reached \(Connection refused\)\. Check that the server runs"),
        ("nonexistent.invalid/db", r"can't be reached \(failed to resolve host 'nonexistent\.invalid'"),
        ("/db?host=/a,/b", r"can't be reached \(No such file or directory\)"),
        (
            "127.0.0.1:1/db?nosuch=1",
            r"can't be connected to \(invalid connection option \"nosuch\"\)\. Check what",
        ),
        (
            "127.0.0.1:1/db?sslmode=no",
            r"can't be connected to \(.*invalid sslmode value: \"no\"\)\. Check what",
        ),
    ],
)
def test_server_that_is_not_at_that_place(rest: str, message: str) -> None:
    with refused(message):
        Store.open(f"postgresql://me:s3cret@{rest}", create=True)


def test_wrong_password_user_and_database(server: PostgresServer, database: str) -> None:
    with refused(r'refuses the login \(password authentication failed for user "tester"\)\. Check the user'):
        Store.open(server.url(database, password="s3cret/other"), create=True)
    with refused(r'refuses the login \(password authentication failed for user "nobody"\)\. Check the user'):
        Store.open(server.url(database, user="nobody"), create=True)
    with refused(r'is not there \(database "none" does not exist\)\. Create it by `createdb none`'):
        Store.open(server.url("none"), create=True)


def test_commands_end_with_a_message(
    server: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    url = server.url("none")
    for command in (("studies",), ("show", "a"), ("resume", "a"), ("copy-study", "a", "--as", "b")):
        assert run([*command, "--storage", url]) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("actune: postgresql+psycopg://tester:***@")
        assert err.count("\n") == 1
        assert "s3cret" not in err
    with Store.open(server.url(database), create=True):
        said = _check_storage(server.url(database))["detail"]
    assert said.startswith("0 studies at postgresql+psycopg://tester:***@")


def test_password_in_the_query_is_not_shown(server: PostgresServer) -> None:
    quoted = PASSWORD.replace("/", "%2F")
    url = f"postgresql://tester@/none?host={server.folder}&password={quoted}"
    with refused("is not there"):
        Store.open(url, create=True)


def test_empty_database_without_create_stays_empty(server: PostgresServer, database: str) -> None:
    with pytest.raises(UsageError, match="no studies yet"):
        Store.open(server.url(database), create=False)
    assert server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=database) == []


def test_read_only_user_reads_and_can_not_write(server: PostgresServer, database: str) -> None:
    with Store.open(server.url(database), create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        record(store, "a", 0)
    server.execute(f"CREATE ROLE reader_{database} LOGIN PASSWORD '{PASSWORD}'")
    server.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{database}", database=database)
    url = server.url(database, user=f"reader_{database}")
    with Store.open(url, create=True) as store:
        assert store.trials("a") == [trial(0)]
        with refused(r"this user lacks a privilege \(permission denied for table \w+\)\. Have it granted"):
            record(store, "a", 1)
    server.execute(f"ALTER ROLE reader_{database} SET default_transaction_read_only = on")
    with Store.open(url, create=True) as store:
        assert store.trials("a") == [trial(0)]
        with refused(r"lets nothing be written: .*default_transaction_read_only"):
            record(store, "a", 1)
        with refused(r"lets nothing be written"):
            search(store, Machine(), "b")


def test_database_that_may_not_be_set_up(server: PostgresServer, database: str) -> None:
    server.execute(f"CREATE ROLE guest_{database} LOGIN PASSWORD '{PASSWORD}'")
    with refused(r"lacks a privilege \(permission denied for schema public\)"):
        Store.open(server.url(database, user=f"guest_{database}"), create=True)


def test_no_more_connections(server: PostgresServer, database: str) -> None:
    Store.open(server.url(database), create=True).close()
    server.execute(f"CREATE ROLE busy_{database} LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 0")
    with refused(r"takes no more connections \(too many connections"):
        Store.open(server.url(database, user=f"busy_{database}"), create=False)


def test_missing_driver_is_named_as_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with refused(r"driver for PostgreSQL is missing.*`pip install 'actune\[postgresql\]'`"):
        Store.open("postgresql://me:s3cret@host/db", create=True)


def test_a_trial_longer_than_a_connection_lives_is_stored(server: PostgresServer, database: str) -> None:
    """A connection that was cut while idle, as by a firewall, is replaced."""
    with Store.open(server.url(database), create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        record(store, "a", 0)
        assert store.trials("a") == [trial(0)]


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """A server that tests stop and start."""
    with postgres_server() as server:
        yield server


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL, signal.SIGINT])
def test_server_that_ends_in_the_middle_of_a_search(mortal: PostgresServer, number: int) -> None:
    machine = Machine()
    trials = 0

    def stop_at_the_third(_: str) -> None:
        nonlocal trials
        trials += 1
        if trials == 3:
            mortal.stop(number)

    machine.before_trial = stop_at_the_third
    database = mortal.new_database()
    with Store.open(mortal.url(database), create=True) as store:
        with refused(r"can't be reached .*Check that the server runs"):
            search(store, machine)
        with refused(r"can't be reached"):
            store.trials("a")
        mortal.start()
        assert len(store.trials("a")) == 2
        assert search(store, machine).best_hash is not None
        check_whole(store, machine, 6)


@pytest.mark.faults
def test_server_that_is_restarted_in_the_middle_of_a_search(mortal: PostgresServer) -> None:
    """It forgets whose lock it was, so the search ends, though the database is there again."""
    machine = Machine()
    starts: list[str] = []

    def restart_at_the_third(name: str) -> None:
        starts.append(name)
        if len(starts) == 3:
            mortal.stop()
            mortal.start()

    machine.before_trial = restart_at_the_third
    with Store.open(mortal.url(mortal.new_database()), create=True) as store:
        with refused(r"no longer holds the lock on study 'a': the server was restarted"):
            search(store, machine)
        assert len(store.trials("a")) == 2
        assert search(store, machine).best_hash is not None
        check_whole(store, machine, 6)


@pytest.mark.faults
def test_server_that_ends_within_a_transaction(mortal: PostgresServer) -> None:
    with Store.open(mortal.url(mortal.new_database()), create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        with refused(r"is (gone|being shut down)"), store._writing() as connection:
            mortal.stop(signal.SIGQUIT)
            connection.exec_driver_sql("DELETE FROM actune_studies")
        mortal.start()
        assert store.has_study("a")


def test_amended_trial_of_another_size_is_kept_exactly(server_url: str) -> None:
    """Floats and integers come back to the last digit."""
    exact = replace(measurement(1), compile_s=2**-1074, peak_bytes=2**63 - 1)
    with Store.open(server_url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        record(store, "a", 0)
        store.amend_trial("a", replace(trial(0), measurement=exact), reference_hash=None, budget_bytes=2**63 - 1)
        assert store.trials("a")[0].measurement == exact
