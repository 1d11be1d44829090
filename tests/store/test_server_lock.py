"""Locks that a PostgreSQL server keeps: who holds them, what ends them, and what is done without them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import optuna
import pytest

from actune.errors import ActuneError, StorageError
from actune.search.study import PlanStudy
from actune.store import Store, lock, setup_lock, study_lock
from tests.postgresql import PostgresServer
from tests.search.fakes import Machine, search
from tests.search.test_recovery import check_whole

from .examples import ENVIRONMENT, SETTINGS, TARGET
from .test_lock import holder

SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = '{}' AND application_name ~ '^actune [0-9]'"


def cut_the_lock(server: PostgresServer, database: str) -> None:
    """What a restarted server or a broken network comes to; the search's other connections stay."""
    server.execute(f"SELECT pg_terminate_backend(pid) FROM ({SESSIONS.format(database)}) AS sessions")


def test_held_by_another_process_names_it_until_it_ends(server_url: str) -> None:
    with holder(server_url, "a") as process:
        host = socket.gethostname()
        message = rf"study 'a' at .* by process {process.pid} on {host[:20]}.*, since 20\d\d-.*Z\. .*--wait, .*--study"
        with pytest.raises(ActuneError, match=message) as caught:
            study_lock(server_url, "a").__enter__()
        assert caught.value.exit_code == 1
        assert "s3cret" not in str(caught.value)
        with study_lock(server_url, "b"):
            pass  # another study's coordinator is none of its business
        process.communicate("")
        with study_lock(server_url, "a"):
            pass


def test_killed_holder_leaves_the_lock_free(server_url: str) -> None:
    with holder(server_url, "a") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The server learns of the death on its own, in a moment that nothing tells.
        with (
            study_lock(server_url, "a", while_held=lambda _: None),
            pytest.raises(ActuneError, match=f"by process {os.getpid()} "),
        ):
            study_lock(server_url, "a").__enter__()


def test_lock_is_one_for_all_ways_to_name_the_database_and_another_in_another_database(
    server: PostgresServer, server_url: str
) -> None:
    with study_lock(server_url, "a"):
        with pytest.raises(ActuneError, match="is being searched"):
            study_lock(server_url.replace("postgresql+psycopg:", "postgres:") + "&connect_timeout=9", "a").__enter__()
        other = server.new_database()
        with study_lock(server.url(other), "a"):
            pass
        server.drop(other)


def test_lock_of_another_user_names_its_holder(server: PostgresServer, database: str) -> None:
    server.execute(f"CREATE ROLE colleague_{database} LOGIN PASSWORD 's3cret/word'")
    with (
        study_lock(server.url(database), "a"),
        pytest.raises(ActuneError, match=f"by process {os.getpid()} on "),
    ):
        study_lock(server.url(database, user=f"colleague_{database}"), "a").__enter__()


def test_a_user_who_acts_as_a_team_searches_too(server: PostgresServer, database: str) -> None:
    """Who acts as another role sees less of the server's sessions, also of its own."""
    team, member = f"team_{database}", f"member_{database}"
    server.execute(f"CREATE ROLE {team}")
    server.execute(f"CREATE ROLE {member} LOGIN PASSWORD 's3cret/word' NOINHERIT IN ROLE {team}")
    server.execute(f"ALTER ROLE {member} SET role = '{team}'")
    server.execute(f"GRANT CREATE ON SCHEMA public TO {team}", database=database)
    with Store.open(server.url(database, user=member), create=True) as store:
        machine = Machine()
        assert search(store, machine).best_hash is not None
        check_whole(store, machine, 6)


def test_lock_is_released_when_the_block_fails(server_url: str) -> None:
    with pytest.raises(KeyError), study_lock(server_url, "a"):
        raise KeyError
    with study_lock(server_url, "a"):
        pass


def test_setup_lock_that_is_never_released(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETUP_TIMEOUT_S", 0.1)
    message = rf"setting this database up for 0\.1 s: process {os.getpid()} on .*\. End it"
    with setup_lock(server_url), pytest.raises(StorageError, match=message):
        setup_lock(server_url).__enter__()


def test_connections_notice_a_dead_machine(server: PostgresServer, database: str) -> None:
    """On both ends; over a unix socket the server shows its settings as 0, so only that they are sent can be seen."""
    with Store.open(server.url(database), create=True) as store, store._reading() as connection:
        parameters = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert (parameters["keepalives_idle"], parameters["keepalives_interval"]) == ("30", "10")
        assert parameters["application_name"] == "actune"
        assert "-c tcp_keepalives_idle=30" in parameters["options"]
    with Store.open(server.url(database) + "&keepalives_idle=7", create=True) as store, store._reading() as connection:
        assert connection.connection.driver_connection.info.get_parameters()["keepalives_idle"] == "7"  # type: ignore[union-attr]


def test_an_idle_lock_outlives_the_servers_limit_on_idle_sessions(server: PostgresServer, database: str) -> None:
    server.execute(f"ALTER DATABASE {database} SET idle_session_timeout = '50ms'")
    with study_lock(server.url(database), "a"):
        time.sleep(0.3)
        with pytest.raises(ActuneError, match=f"by process {os.getpid()} "):
            study_lock(server.url(database), "a").__enter__()


# A lock that is lost


@pytest.mark.parametrize("call", [1, 3])
def test_a_search_that_lost_its_lock_writes_nothing_more(server: PostgresServer, database: str, call: int) -> None:
    """Neither in actune's tables nor in Optuna's, though the database is there and another process may search."""
    machine = Machine()
    calls = 0
    seen: list[tuple[object, object]] = []

    def state() -> tuple[object, object]:
        with Store.open(server.url(database), create=False) as reader:
            storage = optuna.storages.RDBStorage(reader.url)
            study = optuna.load_study(storage=storage, study_name="a")
            found = (reader.trials("a"), [(frozen.number, frozen.state, frozen.user_attrs) for frozen in study.trials])
            storage.remove_session()
            storage.engine.dispose()
        return found

    def lose_the_lock(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            cut_the_lock(server, database)
            seen.append(state())

    machine.before_trial = lose_the_lock
    with Store.open(server.url(database), create=True) as store:
        message = r"no longer holds the lock on study 'a': .*What was measured before is stored; .*`actune resume a`"
        with pytest.raises(StorageError, match=message):
            search(store, machine)
        assert seen == [state()]
        assert len(store.trials("a")) == call - 1
        assert search(store, machine).best_hash is not None
        check_whole(store, machine, 6)


def test_what_optuna_is_told_without_the_lock_is_refused(server: PostgresServer, database: str) -> None:
    from actune.search.space import ModelSpace
    from tests.search.fakes import dense, space_of

    space = ModelSpace(space_of(), dense(4))
    with Store.open(server.url(database), create=True) as store, store.locked("a"):
        study = PlanStudy(store, "a", space, sampler="random", seed=0)
        number = study.ask().number
        cut_the_lock(server, database)
        for write in (study.ask, lambda: study.drop(number), lambda: study.queue_preset("full")):
            with pytest.raises(StorageError, match="no longer holds the lock"):
                write()
        study.close()
    with Store.open(server.url(database), create=True) as store, store.locked("a"):
        study = PlanStudy(store, "a", space, sampler="random", seed=0)
        assert study.running_numbers() == [number]
        assert not study.has_queued()
        study.close()


def test_the_next_coordinator_waits_for_what_the_last_one_is_writing(server: PostgresServer, database: str) -> None:
    """Else it could read a study that changes after it was read."""
    url = server.url(database)
    order: list[str] = []
    with Store.open(url, create=True) as first, Store.open(url, create=True) as second:
        first.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        wants_it = threading.Event()

        def take_over() -> None:
            wants_it.set()
            with second.locked("a", while_held=lambda _: None):
                order.append(f"next sees {second.study('a').reference_hash}")

        thread = threading.Thread(target=take_over)
        with first.locked("a"):
            with first._writing() as connection:
                connection.exec_driver_sql("UPDATE actune_studies SET reference_hash = 'written'")
                cut_the_lock(server, database)
                thread.start()
                wants_it.wait()
                time.sleep(0.5)  # enough for a coordinator that does not wait
                order.append("last writes")
            thread.join()
            with pytest.raises(StorageError, match="no longer holds the lock"):
                first.set_reference("a", "too late")
    assert order == ["last writes", "next sees written"]


def test_another_store_of_the_process_writes_without_the_lock(server_url: str) -> None:
    """Commands that are no search, such as a copy, are not bound by it."""
    with Store.open(server_url, create=True) as store, Store.open(server_url, create=True) as other:
        with store.locked("a"):
            other.create_study("b", SETTINGS, TARGET, ENVIRONMENT)
        store.create_study("c", SETTINGS, TARGET, ENVIRONMENT)
