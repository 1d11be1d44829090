from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actune.errors import ActuneError, StorageError, UsageError
from actune.store import lock, setup_lock, study_lock

HOLD = """
import sys
from actune.store import study_lock
with study_lock(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/a.db"


@contextmanager
def holder(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_held_by_another_process_names_it_until_it_ends(url: str) -> None:
    with holder(url, "a") as process:
        message = rf"study 'a' at .* by process {process.pid} on .*, since 20\d\d-.* --study"
        with pytest.raises(ActuneError, match=message) as caught:
            study_lock(url, "a").__enter__()
        assert caught.value.exit_code == 1
        with study_lock(url, "b"):
            pass  # another study's coordinator is none of its business
        process.communicate("")
        with study_lock(url, "a"):
            pass


def test_killed_holder_leaves_the_lock_free(url: str) -> None:
    with holder(url, "a") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with study_lock(url, "a"), pytest.raises(ActuneError, match=f"by process {os.getpid()} "):
            study_lock(url, "a").__enter__()


def test_held_twice_in_one_process_is_refused(url: str) -> None:
    with study_lock(url, "a"), pytest.raises(ActuneError, match=f"process {os.getpid()} "):
        study_lock(url, "a").__enter__()
    with study_lock(url, "a"):
        pass


def test_lock_is_released_when_the_block_fails(url: str) -> None:
    with pytest.raises(KeyError), study_lock(url, "a"):
        raise KeyError
    with study_lock(url, "a"):
        pass


def test_unreadable_holder_file_does_not_hide_the_lock(url: str, tmp_path: Path) -> None:
    with study_lock(url, "a"):
        (tmp_path / "a.db-a.holder").write_text("{")
        with pytest.raises(ActuneError, match="by another process"):
            study_lock(url, "a").__enter__()


def test_files_lie_beside_the_database(url: str, tmp_path: Path) -> None:
    with study_lock(url, "a"), setup_lock(url):
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"a.db.lock", "a.db-a.lock", "a.db-a.holder"}
        assert json.loads((tmp_path / "a.db-a.holder").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "a.db-a.holder").exists()


def test_symlink_and_relative_path_lead_to_the_same_lock(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    monkeypatch.chdir(tmp_path)
    with study_lock(url, "a"):
        for other in ("sqlite:///a.db", "sqlite:///link.db", "sqlite:///../" + tmp_path.name + "/a.db"):
            with pytest.raises(ActuneError, match="is being searched"):
                study_lock(other, "a").__enter__()


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "", "..", "a\0b"])
def test_name_cannot_leave_the_folder(url: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not usable"):
        study_lock(url, name).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_the_storages_fault(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the folder .*/none does not exist\. Create it"):
        study_lock(f"sqlite:///{tmp_path}/none/a.db", "a").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_setup_lock_that_is_never_released(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETUP_TIMEOUT_S", 0.1)
    with setup_lock(url), pytest.raises(StorageError, match=r"setting this database up for 0\.1 s: .*a\.db\.lock"):
        setup_lock(url).__enter__()
