"""A finished study that many tests read, and the command line in this process and in one of its own."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from actune.cli import run
from tests.processes import MARK

FAULTY = Path(__file__).parent / "targets" / "faulty.py"
SOUND = f"{FAULTY}:Sound"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """Its stdout, which has to be one JSON document without NaN."""
        return json.loads(self.out, parse_constant=pytest.fail)


def actune_process(*arguments, folder, mark=None):
    """A command in a process of its own."""
    environment = dict(os.environ)
    if mark is not None:
        environment[MARK] = mark
    return subprocess.Popen(
        [sys.executable, "-c", "from actune.cli import main; main()", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def wait_until(condition, *, what, limit_s=60.0):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} has not come about"
        time.sleep(0.02)


def is_whole(database):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def actune(capsys, monkeypatch, tmp_path):
    """Runs a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACTUNE_STORAGE", raising=False)

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert "internal error" not in captured.err
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory):
    """A folder with the finished study `sound`."""
    folder = tmp_path_factory.mktemp("finished")
    search = actune_process(
        "search",
        "--target",
        SOUND,
        "--budget",
        "70%",
        "--trials",
        10,
        "--tolerance",
        0,
        "--study",
        "sound",
        "--json",
        folder=folder,
    )
    result = ended(search)
    assert result.code == 0, result.err
    (folder / "search.json").write_text(result.out)
    return folder


@pytest.fixture
def study(actune, finished_folder, tmp_path):
    """`actune`, in a copy of that folder."""
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    return actune
