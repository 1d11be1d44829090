"""Backups of a SQLite file in use: whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from actune.cli import run
from actune.errors import StorageError, UsageError
from actune.store import Store, back_up
from actune.store import backup as backup_module

from .contract import record
from .examples import ENVIRONMENT, SETTINGS, TARGET, trial
from .test_processes import TESTS, WRITE_FOREVER, start
from .test_sqlite import as_ordinary_user, filled, reachable, url_of

__all__ = ["reachable"]


def check(path: Path, trials: int | None = None) -> int:
    """That it is one whole database, and how many trials it has."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    with Store.open(url_of(path), create=False) as store:
        kept = store.trials("a")
    assert kept == [trial(number) for number in range(len(kept))]
    assert trials is None or len(kept) == trials
    return len(kept)


def test_a_backup_opens_and_is_written_to(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    (tmp_path / "a.db").chmod(0o640)
    size_bytes = back_up(url_of(tmp_path / "a.db"), tmp_path / "b.db", force=False)
    assert (tmp_path / "b.db").stat().st_size == size_bytes
    assert (tmp_path / "b.db").stat().st_mode & 0o777 == 0o640
    check(tmp_path / "b.db", 20)
    assert {path.name for path in tmp_path.iterdir()} == {"a.db", "b.db", "a.db.lock"}
    with Store.open(url_of(tmp_path / "b.db"), create=False) as store:
        record(store, "a", 20)
    with Store.open(url_of(tmp_path / "a.db"), create=False) as store:
        assert len(store.trials("a")) == 20


def test_backups_while_another_process_writes_all_the_time(tmp_path: Path) -> None:
    url = url_of(tmp_path / "a.db")
    with Store.open(url, create=True) as store:
        store.create_study("a", SETTINGS, TARGET, ENVIRONMENT)
    with start(WRITE_FOREVER, url, str(TESTS)) as writer:
        assert writer.stdout is not None
        counts = []
        for number in range(5):
            reported = int(writer.stdout.readline()) + 1
            back_up(url, tmp_path / f"{number}.db", force=False)
            counts.append(check(tmp_path / f"{number}.db"))
            assert counts[-1] >= reported
            for _ in range(3):
                writer.stdout.readline()  # it goes on
        writer.kill()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    url, path = url_of(tmp_path / "a.db"), tmp_path / "b.db"
    path.write_text("theirs")
    with pytest.raises(UsageError, match=r"b\.db exists already\. .*--force"):
        back_up(url, path, force=False)
    assert path.read_text() == "theirs"
    back_up(url, path, force=True)
    check(path, 20)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_comes_up_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    filled(tmp_path / "a.db")
    path = tmp_path / "b.db"
    sync = backup_module._sync

    def sync_late(synced: Path) -> None:
        path.write_text("theirs")
        sync(synced)

    monkeypatch.setattr(backup_module, "_sync", sync_late)
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_to_link)
    with pytest.raises(UsageError, match="exists already"):
        back_up(url_of(tmp_path / "a.db"), path, force=False)
    assert path.read_text() == "theirs"
    assert not list(tmp_path.glob(".*"))


def refuse_to_link(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_filesystem_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "a.db")
    monkeypatch.setattr(os, "link", refuse_to_link)
    back_up(url_of(tmp_path / "a.db"), tmp_path / "b.db", force=False)
    check(tmp_path / "b.db", 20)


def test_the_database_itself_a_folder_and_a_database_in_use_are_no_places(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    url = url_of(tmp_path / "a.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    for path in (tmp_path / "a.db", tmp_path / "link.db"):
        with pytest.raises(UsageError, match="is the database itself"):
            back_up(url, path, force=True)
    with pytest.raises(StorageError, match="is a folder"):
        back_up(url, tmp_path, force=True)
    filled(tmp_path / "b.db")
    with Store.open(url_of(tmp_path / "b.db"), create=False) as store:
        record(store, "a", 20)
        with pytest.raises(StorageError, match=r"b\.db-wal is there: .* a database in use"):
            back_up(url, tmp_path / "b.db", force=True)
        assert len(store.trials("a")) == 21


def test_a_damaged_database_does_not_replace_a_good_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "a.db", tmp_path / "b.db"
    filled(path)
    back_up(url_of(path), backup, force=False)
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(StorageError, match=r"a\.db is damaged"):
        back_up(url_of(path), backup, force=True)
    check(backup, 20)
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_database_of_studies(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no studies yet"):
        back_up(url_of(tmp_path / "none.db"), tmp_path / "b.db", force=False)
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE theirs (x)")
        theirs.commit()
    with pytest.raises(UsageError, match="no studies yet"):
        back_up(url_of(tmp_path / "theirs.db"), tmp_path / "b.db", force=False)
    (tmp_path / "text").write_text("x")
    with pytest.raises(StorageError, match="is not a SQLite database"):
        back_up(url_of(tmp_path / "text"), tmp_path / "b.db", force=False)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.db", "text"}


def test_folder_that_is_not_there_or_not_writable(tmp_path: Path, reachable: Path) -> None:
    filled(reachable / "a.db")
    url = url_of(reachable / "a.db")
    with pytest.raises(StorageError, match=r"can't be used: No such file or directory"):
        back_up(url, reachable / "none" / "b.db", force=False)
    shut = reachable / "shut"
    shut.mkdir()
    with as_ordinary_user(reachable, *reachable.iterdir()):
        shut.chmod(0o555)
        with pytest.raises(StorageError, match=r"b\.db.* can't be used: Permission denied"):
            back_up(url, shut / "b.db", force=False)
    assert list(shut.iterdir()) == []


BACK_UP_TO_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from actune.cli import run
limit = 36000  # more than the index of a log takes, less than the database
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(run(["backup", sys.argv[2], "--storage", sys.argv[1], "--force"]))
"""


def test_a_disk_without_room_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk's."""
    filled(tmp_path / "a.db")
    (tmp_path / "b.db").write_text("theirs")
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-c", BACK_UP_TO_A_FULL_DISK, url_of(tmp_path / "a.db"), str(tmp_path / "b.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "b.db can't be read or written" in done.stderr or "b.db can't grow" in done.stderr
    assert "free space" in done.stderr or "Free some space" in done.stderr
    assert (tmp_path / "b.db").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_killed_it_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    code = (
        "import os, signal, sys; from pathlib import Path; from actune.store import back_up, backup\n"
        "backup._publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "back_up(sys.argv[1], Path(sys.argv[2]), force=False)"
    )
    command = [sys.executable, "-c", code, url_of(tmp_path / "a.db"), str(tmp_path / "b.db")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "b.db").exists()
    back_up(url_of(tmp_path / "a.db"), tmp_path / "b.db", force=False)
    check(tmp_path / "b.db", 20)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "a.db")
    arguments = ["backup", str(tmp_path / "b.db"), "--storage", url_of(tmp_path / "a.db")]
    assert run(arguments) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path}/b.db (")
    assert run(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*arguments, "--force", "--json"]) == 0
    size_bytes = (tmp_path / "b.db").stat().st_size
    assert json.loads(capsys.readouterr().out) == {"file": f"{tmp_path}/b.db", "file_bytes": size_bytes}
    assert run(["backup", str(tmp_path / "c"), "--storage", "postgresql://me:s3cret@host/studies"]) == 2
    said = capsys.readouterr().err
    assert "pg_dump --format=custom --file=FILE studies" in said
    assert "s3cret" not in said
