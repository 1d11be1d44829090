"""The store in a SQLite file, and all that can be wrong with one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from actune.errors import StorageError, UsageError
from actune.store import Store

from .contract import StoreTestCase, record
from .examples import ENVIRONMENT, SETTINGS, TARGET, trial


def url_of(path: Path) -> str:
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


def filled(path: Path) -> None:
    with Store.open(url_of(path), create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        record_many(store, 0, 20)


def record_many(store: Store, first: int, end: int) -> None:
    for number in range(first, end):
        record(store, "a", number)


@contextmanager
def as_ordinary_user(*owned: Path) -> Iterator[None]:
    """File permissions bind everyone but root, so tests that run as root step down for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions are another matter on this system")
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    for path in owned:
        os.chown(path, nobody, nobody)
    os.seteuid(nobody)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that other users get into, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class TestSqliteStore(StoreTestCase):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return url_of(tmp_path / "actune.db")


# Opening


def test_relative_path_makes_its_folder_and_stays_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("sqlite:///new/folder/a.db", create=True) as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
        assert store.url == f"sqlite:///{tmp_path}/new/folder/a.db"
        with Store.open(store.url, create=False) as again:
            assert again.has_study("a")


@pytest.mark.parametrize("folder", ["with space", "100%20", "größe", "a#b", "a'b", "a@b"])
def test_odd_folder_names(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "a.db"
    filled(path)
    assert path.is_file()
    with Store.open(url_of(path), create=False) as store:
        assert len(store.trials("a")) == 20


@pytest.mark.parametrize("exists", [False, True])
def test_without_create_nothing_is_made(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "new" / "a.db"
    if exists:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(UsageError, match=r"no studies yet at .*a\.db\. Run `actune search`"):
        Store.open(url_of(path), create=False)
    assert list(tmp_path.rglob("*")) == ([path.parent, path] if exists else [])
    assert not exists or path.stat().st_size == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is no database URL"),
        ("studies/a.db", r"is no database URL.*For a file write sqlite:///studies/a\.db"),
        ("sqlite://", "is not a SQLite file that outlives this process"),
        ("sqlite:///:memory:", "is not a SQLite file that outlives this process"),
        ("sqlite:///file:a.db?uri=true", "is not a SQLite file that outlives this process"),
        ("sqlite+aiosqlite:///a.db", "with Python's own driver"),
        ("nosuch://host/db", r"sqlite:///studies/actune\.db\) and in PostgreSQL .* not by 'nosuch'"),
        ("mysql+pymysql://me:secret@host/db", r"\*\*\*@host/db.* not by 'mysql\+pymysql'"),
        ("postgresql+psycopg2://host/db?password=secret", r"\(postgresql://user@host/database\), not by .*psycopg2'"),
        ("postgresql+asyncpg://host/db", r"not by 'postgresql\+asyncpg'"),
        ("postgresql://me:secret@host", "names no database"),
        ("postgresql://me:secret@host:port/db", r"\*\*\*@host:port/db' is no database URL"),
        ("postgresql://host:port/db?user=me&password=secret&connect_timeout=1", "is no database URL"),
    ],
)
def test_url_that_is_unusable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=message) as caught:
        Store.open(url, create=True)
    assert caught.value.exit_code == 5
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"x", b"schema = 1\n" * 1000, b"SQLite format 2\0" + b"\0" * 4096])
def test_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes, create: bool) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.db is not a SQLite database\. Name another file"):
        Store.open(url_of(path), create=create)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept_bytes", [20, 99, 1000, 4096, 9000])
def test_truncated_file_is_left_alone(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "a.db"
    filled(path)
    assert path.stat().st_size > 40_000
    content = path.read_bytes()[:kept_bytes]
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.db is (damaged|not a SQLite database)"):
        Store.open(url_of(path), create=True)
    assert path.read_bytes() == content


def test_overwritten_pages_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(StorageError, match=r"a\.db is damaged"), Store.open(url_of(path), create=False) as store:
        store.trials("a")


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is a folder\. Name a file"):
        Store.open(url_of(tmp_path), create=True)


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"can't be used: .*Check that the folder exists"):
        Store.open(url_of(tmp_path / "file" / "a.db"), create=True)


def test_folder_that_is_not_writable(reachable: Path) -> None:
    folder = reachable / "shut"
    folder.mkdir()
    with as_ordinary_user(folder):
        folder.chmod(0o555)
        with pytest.raises(StorageError, match="Permission denied"):
            Store.open(url_of(folder / "sub" / "a.db"), create=True)
        with pytest.raises(StorageError, match=r"can't be opened\. You need read and write permission"):
            Store.open(url_of(folder / "a.db"), create=True)


def test_read_only_file_can_be_read_but_not_written(reachable: Path) -> None:
    path = reachable / "a.db"
    filled(path)
    with as_ordinary_user(*reachable.iterdir(), reachable):
        path.chmod(0o444)
        with Store.open(url_of(path), create=False) as store:
            assert len(store.trials("a")) == 20
            with pytest.raises(StorageError, match=r"a\.db is read-only\. Give yourself write permission"):
                record(store, "a", 20)


def test_read_only_folder_says_what_to_do(reachable: Path) -> None:
    folder = reachable / "archive"
    filled(folder / "a.db")
    (folder / "a.db").chmod(0o444)
    with as_ordinary_user(folder):
        folder.chmod(0o555)
        with pytest.raises(StorageError, match="copy it to where you have it"):
            Store.open(url_of(folder / "a.db"), create=False)


def test_unreadable_file(reachable: Path) -> None:
    path = reachable / "a.db"
    filled(path)
    with as_ordinary_user(*reachable.iterdir()):
        path.chmod(0)
        with pytest.raises(StorageError, match="Permission denied"):
            Store.open(url_of(path), create=False)


# Beside other programs


def test_foreign_database_keeps_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE alembic_version (version_num TEXT)")
        theirs.execute("INSERT INTO alembic_version VALUES ('theirs')")
        theirs.execute("CREATE TABLE studies (name TEXT)")
        theirs.execute("INSERT INTO studies VALUES ('theirs')")
        theirs.commit()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="no studies yet"):
        Store.open(url_of(path), create=False)
    assert path.read_bytes() == before
    filled(path)
    with closing(sqlite3.connect(path)) as theirs:
        assert theirs.execute("SELECT * FROM alembic_version, studies").fetchall() == [("theirs", "theirs")]
        assert theirs.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_locked_for_writing_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    with (
        Store.open(url_of(path), create=False, busy_timeout_s=0.1) as store,
        closing(sqlite3.connect(path)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"a\.db is locked by another program .*Close what holds it"):
            record(store, "a", 20)
        assert len(store.trials("a")) == 20
        other.rollback()
        record(store, "a", 20)
        assert len(store.trials("a")) == 21


def test_locked_while_tables_are_to_be_made(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="is locked by another program"):
            Store.open(url_of(path), create=True, busy_timeout_s=0.1)


def test_reader_with_an_open_transaction_does_not_block_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    with (
        Store.open(url_of(path), create=False, busy_timeout_s=0.1) as store,
        closing(sqlite3.connect(path)) as reader,
    ):
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM actune_trials").fetchone() == (20,)
        record(store, "a", 20)
        assert reader.execute("SELECT count(*) FROM actune_trials").fetchone() == (20,)
        reader.rollback()
        assert reader.execute("SELECT count(*) FROM actune_trials").fetchone() == (21,)


def test_full_disk_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path)
    with Store.open(url_of(path), create=False) as store:

        def no_more_pages(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute("PRAGMA max_page_count=1")  # SQLite rounds it up to the file's size

        event.listen(store._engine, "checkout", no_more_pages)
        with pytest.raises(StorageError, match=r"a\.db can't grow: the disk or your quota is full"):
            record_many(store, 20, 500)
        event.remove(store._engine, "checkout", no_more_pages)
    with Store.open(url_of(path), create=False) as store:
        kept = store.trials("a")
        assert kept[:20] == [trial(number) for number in range(20)]
        assert kept == [trial(number) for number in range(len(kept))]


def test_copy_without_its_log_gets_one_again(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute(f"VACUUM INTO '{copy}'")

    def mode() -> str:
        with closing(sqlite3.connect(copy)) as connection:
            return str(connection.execute("PRAGMA journal_mode").fetchone()[0])

    assert mode() == "delete"
    with Store.open(url_of(copy), create=False) as store:
        assert len(store.trials("a")) == 20
        assert mode() == "delete"  # reading changes nothing
        record(store, "a", 20)
    assert mode() == "wal"


def test_commits_are_synced_and_foreign_keys_are_on(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    with (
        Store.open(url_of(tmp_path / "a.db"), create=False) as store,
        store._engine.connect() as connection,
    ):
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000


def test_record_of_another_version_is_reported(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    with closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("UPDATE actune_studies SET settings = '{}'")
        other.commit()
    with (
        Store.open(url_of(tmp_path / "a.db"), create=False) as store,
        pytest.raises(StorageError, match="holds a StudySettings that this actune can't read"),
    ):
        store.study("a")
