"""The coordinator's end of the process that is connected to Ray."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from actune.boundary import from_json, to_json
from actune.engine.on_ray.messages import Connect, Connected, Ended, Event, Job, Lost, Refused, Submit
from actune.errors import ActuneError, StorageError, UsageError

COMMAND = [sys.executable, "-c", "from actune.engine.on_ray.driver import main; main()"]
"""Not `-m`: Ray puts the folder of its driver's script in front of what its workers import."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_PROMPT_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}
"""Nothing is reported to anyone, and no call of Ray's starts a cluster on its own."""
CONNECT_S = 60.0
"""Ray itself tries for minutes where the last cluster of this machine has gone without a word."""
END_S = 60.0


class Bridge:
    """Submits jobs to Ray and hears how they end."""

    def __init__(self, connect: Connect, log_path: Path) -> None:
        """Starts the process and waits until it is connected.

        Args:
            connect: what to connect to.
            log_path: what it and Ray print is appended there.

        Raises:
            StorageError: the log can't be written.
            UsageError: there is no such cluster, or none that can run the target.
            ActuneError: Ray ended the process.
        """
        self._log_path = log_path
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            log = log_path.open("ab")
        except OSError as error:
            raise StorageError(
                f"the log {log_path} can't be written: {error.strerror}. It lies in a folder beside the database: give "
                "yourself the right to write there, or name a database elsewhere with --storage."
            ) from None
        with log:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=os.environ | SETTINGS,
            )
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Ended | Lost]] = {}
        self._lock = threading.Lock()
        self._is_lost = False
        self._is_closing = False
        self._connected: Future[Connected | Refused] = Future()
        self._reader = threading.Thread(target=self._read, name="ray-events", daemon=True)
        self._reader.start()
        try:
            self._send(connect)
            answer = self._connected.result(timeout=CONNECT_S)
        except TimeoutError:
            self.close(patience_s=0.0)
            raise UsageError(
                f"Ray has not connected within {CONNECT_S:g} s. Does the cluster {connect.address or 'that Ray found'} "
                f"still run? Give its --address HOST:PORT. What Ray said is in {log_path}."
            ) from None
        except BaseException:
            self.close(patience_s=0.0)  # nothing runs yet
            raise
        if isinstance(answer, Refused):
            self.close()
            raise UsageError(answer.message)

    def submit(self, job: Job) -> tuple[int, Future[Ended | Lost]]:
        """Runs a job on some node. Its number is that of the task.

        Raises:
            ActuneError: the connection is lost.
        """
        ended: Future[Ended | Lost] = Future()
        with self._lock:
            if self._is_lost:
                raise self._lost()
            number = next(self._numbers)
            self._pending[number] = ended
            self._send(Submit(number, job))
        return number, ended

    def close(self, *, patience_s: float = END_S) -> None:
        """Cancels what runs, waits until its workers are gone, and disconnects.

        Args:
            patience_s: after which the process is killed, which Ray takes for an order to end its tasks too.
        """
        self._is_closing = True
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join()

    def _send(self, command: Connect | Submit) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # it has died, or is being closed; the reader says so to all who wait
            self._process.stdin.write(to_json(command).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as replies:
            for line in replies:
                if not line.endswith(b"\n"):
                    break  # it died while it said this
                message: Connected | Refused | Event = from_json(Connected | Refused | Event, line)
                if isinstance(message, Event):
                    with self._lock:
                        ended = self._pending.pop(message.number)
                    ended.set_result(message.what)
                else:
                    self._connected.set_result(message)
        with self._lock:
            self._is_lost = True
            left, self._pending = list(self._pending.values()), {}
        for waiting in left:
            if self._is_closing:  # on a node that hangs
                waiting.set_result(Lost("closed", "given up, as the engine was closed"))
            else:
                waiting.set_exception(self._lost())
        if not self._connected.done():
            self._connected.set_exception(self._lost())

    def _lost(self) -> ActuneError:
        return ActuneError(
            f"the connection to the Ray cluster is lost. Is its head node up? What Ray said is in {self._log_path}; "
            "what was measured is stored, and `actune resume` goes on."
        )
