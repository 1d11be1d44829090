"""One worker process: started, asked, timed out, and buried."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actune import stragglers
from actune.boundary import from_json, shorten, to_json
from actune.errors import ActuneError, StorageError
from actune.records import AwaitsTurn, Failed, Reply, ReplyLine, Request, TakeTurn

LOG_TAIL_BYTES = 16_000  # where a hang is comes first in its stack, and stacks of compilers are long
MAX_REPLY_BYTES = 2**26
STOP_GRACE_S = 5.0
POLL_S = 1.0
STACKS_S = 0.5


@dataclass(eq=False)
class WorkerDiedError(Exception):
    """The worker ended, or was ended, without a reply.

    Attributes:
        timed_out: the engine killed it after the time-out.
        out_of_memory: the system's OOM killer ran while it died of SIGKILL.
        message: one line.
        log_tail: the end of what it printed.
    """

    timed_out: bool
    out_of_memory: bool
    message: str
    log_tail: str


class Worker(Protocol):
    """What an engine asks: a process, or the processes of one job.

    Attributes:
        environment: what it was given beside the engine's own, for the next one.
    """

    environment: dict[str, str]

    @property
    def pid(self) -> int:
        """Of the process, or of the first of them."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it has neither ended nor been ended."""
        ...

    def ask(self, request: Request, *, timeout_s: float, take_turn: Callable[[], None]) -> Reply:
        """Sends a request and waits for its reply.

        Args:
            request: to be carried out.
            timeout_s: how long that may take, waiting for a turn aside.
            take_turn: called where the request waits for its turn; returns once it has it.

        Raises:
            WorkerDiedError: there was none; the worker is gone.
        """
        ...

    def kill(self) -> None:
        """Ends it and all its children at once, and waits for it."""
        ...


class WorkerProcess:
    """A child in a session of its own, so that Ctrl-C reaches only the coordinator, and its children die with it."""

    def __init__(self, log_path: Path, environment: dict[str, str]) -> None:
        """Starts the process.

        Args:
            log_path: what it prints is appended there.
            environment: variables beside this process's own.

        Raises:
            StorageError: the log can't be written.
        """
        self.environment = environment
        self._mark = uuid.uuid4().hex
        self._log_path = log_path
        self._oom_kills = 0
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = log_path.stat().st_size if log_path.exists() else 0
            log = log_path.open("ab")
        except OSError as error:
            raise StorageError(
                f"the workers' log {log_path} can't be written: {error.strerror}. It lies in a folder beside the "
                "database: give yourself the right to write there, or name a database elsewhere with --storage."
            ) from None
        with log, _started_or_said():
            self._process = subprocess.Popen(
                # -P: the current folder may be a stranger's, and is importable for the target's own code alone.
                [sys.executable, "-P", "-m", "actune.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **environment, stragglers.MARK: self._mark},
            )
        self._asked = 0
        self._burial = threading.Lock()
        self._is_buried = False
        # One reply is asked for at a time, so what a worker writes beyond that is left in its pipe.
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=2)
        self._reader = threading.Thread(target=self._read, name="worker-replies", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id, which is also its process group's."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has neither ended nor been ended."""
        return not self._is_buried and self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stdout is not None
        # Closed here and not in `kill`, which would wait for this thread as long as any process keeps the pipe open.
        with self._process.stdout as replies:
            while line := replies.readline(MAX_REPLY_BYTES + 1):
                if not self._hand_on(line) or len(line) > MAX_REPLY_BYTES:
                    break
        self._hand_on(None)

    def _hand_on(self, line: bytes | None) -> bool:
        """Waits until the line before was taken; False if nobody will."""
        while True:
            try:
                self._lines.put(line, timeout=POLL_S)
            except queue.Full:
                if self._is_buried:
                    return False
            else:
                return True

    def ask(self, request: Request, *, timeout_s: float, take_turn: Callable[[], None]) -> Reply:
        """Sends a request and waits for its reply.

        Args:
            request: to be carried out.
            timeout_s: how long that may take, waiting for a turn aside.
            take_turn: called where the request waits for its turn; returns once it has it.

        Raises:
            WorkerDiedError: there was none; the process is gone.
        """
        self._asked += 1
        self._oom_kills = _oom_kills()  # those before are other programs', or earlier trials'
        self._send(request)
        left_s = timeout_s
        while True:
            began_s = time.monotonic()
            try:
                if left_s <= 0:  # whatever else it has written
                    raise queue.Empty
                line = self._next_line(left_s)
            except queue.Empty:
                self._print_stacks()
                self.kill()
                raise WorkerDiedError(
                    True,
                    False,
                    f"no reply to '{request.kind}' within {timeout_s:g} s, the cap that --trial-timeout sets",
                    self._log_tail(),
                ) from None
            left_s -= time.monotonic() - began_s
            answer = self._understood(line)
            if answer.number < self._asked:
                continue  # one too many to an earlier request
            if answer.number != self._asked:
                self.kill()
                why = f"the worker wrote a reply to request {answer.number}, and this is request {self._asked}"
                raise WorkerDiedError(False, False, why, self._log_tail())
            if not isinstance(answer.reply, AwaitsTurn):
                return answer.reply
            take_turn()
            self._send(TakeTurn())

    def _send(self, request: Request | TakeTurn) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(to_json(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # a pipe that nobody reads any more, or that `kill` has closed
            raise self._bury() from None

    def _understood(self, line: bytes | None) -> ReplyLine:
        if line is None:
            raise self._bury()
        if len(line) > MAX_REPLY_BYTES:
            self.kill()
            raise WorkerDiedError(
                False, False, f"the worker wrote a reply of more than {MAX_REPLY_BYTES} bytes", self._log_tail()
            )
        try:
            answer: ReplyLine = from_json(ReplyLine, line)
        except ValueError:
            self.kill()
            raise WorkerDiedError(
                False, False, f"the worker wrote what is no reply: {shorten(line)}", self._log_tail()
            ) from None
        if isinstance(answer.reply, Failed) and answer.reply.blame == "internal":
            self.kill()
            raise WorkerDiedError(False, False, answer.reply.message, self._log_tail())
        return answer

    def _next_line(self, timeout_s: float) -> bytes | None:
        """A line from the worker, None if it is dead.

        Raises:
            queue.Empty: neither came to be in time.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            left_s = end_s - time.monotonic()
            try:
                return self._lines.get(timeout=max(0.0, min(POLL_S, left_s)))
            except queue.Empty:
                # The pipe's end is no sure sign of a death: a child of the worker may hold it open.
                if self._process.poll() is not None:
                    return None
                if left_s <= POLL_S:
                    raise

    def _print_stacks(self) -> None:
        """Has a worker that hangs print where, for its log."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(STACKS_S)

    def _bury(self) -> WorkerDiedError:
        self.kill()
        code = self._process.returncode
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            if -code == signal.SIGKILL and _oom_kills() > self._oom_kills:
                return WorkerDiedError(False, True, "killed by the system, which ran out of memory", self._log_tail())
            return WorkerDiedError(False, False, f"the worker was killed by {name}", self._log_tail())
        return WorkerDiedError(False, False, f"the worker ended by itself with exit code {code}", self._log_tail())

    def _log_tail(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace")
        except OSError as error:  # somebody has tidied up; that is no part of the worker's fate
            return f"the log {self._log_path} can't be read: {error.strerror}"

    def kill(self) -> None:
        """Ends the process and all its children at once, and waits for it."""
        with self._burial:
            if self._is_buried:  # its number may by now be another process group's
                return
            self._is_buried = True
            # A worker that has ended by itself is given the time to become a zombie with its own exit code.
            if self._reader_saw_end():
                with suppress(subprocess.TimeoutExpired):  # it closed its pipe but lives on, and is killed below
                    self._process.wait(timeout=STOP_GRACE_S)
            with suppress(ProcessLookupError):  # the whole group is gone already
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            stragglers.kill_marked(self._mark)
        if self._process.stdin is not None:
            with suppress(OSError):  # what was still buffered for a dead worker is of no use to anyone
                self._process.stdin.close()

    def _reader_saw_end(self) -> bool:
        return not self._reader.is_alive()


@contextmanager
def _started_or_said() -> Iterator[None]:
    """Raises ActuneError where the system starts no more processes."""
    try:
        yield
    except OSError as error:
        raise ActuneError(
            f"no worker can be started: {error.strerror}. Is the limit on processes, open files or memory reached (see "
            "`ulimit -a`)? What was measured is stored."
        ) from None


def _oom_kills() -> int:
    """How often the kernel's OOM killer has struck on this machine; 0 where that can't be known."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass  # not Linux
    return 0
