"""A worker that writes what is no reply is a dead worker with a message; it neither hangs nor fills the memory."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import pytest

from actune.boundary import to_json
from actune.engine import process
from actune.engine.process import WorkerDiedError, WorkerProcess
from actune.records import CompareGradients, Failed, GradientReport, LoadTarget, ReplyLine
from actune.worker import _answer_all

REQUEST = LoadTarget("dense-tiny", "cpu", 0)
NOT_A_NUMBER = to_json(ReplyLine(1, GradientReport(True, True, 0.25, 0.0, "loss"))).replace("0.25", "NaN")


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that runs a line of shell in the place of Python."""
    started: list[WorkerProcess] = []

    def start(line: str) -> WorkerProcess:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{line}\n")
        python.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(python))
        started.append(WorkerProcess(tmp_path / "worker.log", {}))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.mark.parametrize(
    "line",
    [
        "echo hello; cat",
        "echo; cat",
        r"printf '\377\376\n'; cat",
        r"printf '\000\n'; cat",
        """echo '{"number": 1, "reply": {"kind": "loaded"}}'; cat""",
        """echo '{"number": 1, "reply": {"kind": "failed", "blame": "me", "message": "x"}}'; cat""",
        """echo '{"number": 1, "reply": {"kind": "failed", "blame": "plan", "message": "\\ud800"}}'; cat""",
        """echo '{"kind": "failed", "blame": "plan", "message": "x"}'; cat""",
        f"echo '{NOT_A_NUMBER}'; cat",
        "head -c 100000 /dev/zero | tr '\\0' '['; echo; cat",
        "head -c 3000000 /dev/zero | tr '\\0' '9'; echo; cat",
    ],
    ids=range(11),
)
def test_garbage_is_no_reply(worker, line: str) -> None:
    asked = worker(line)
    with pytest.raises(WorkerDiedError, match="the worker wrote what is no reply") as death:
        asked.ask(REQUEST, timeout_s=60, take_turn=lambda: None)
    assert len(death.value.message) < 200
    assert not asked.is_alive


@pytest.mark.parametrize("source", ["cat /dev/zero", "yes | tr -d '\\n'"])
def test_line_without_an_end_is_not_kept(worker, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(process, "MAX_REPLY_BYTES", 2**16)
    with pytest.raises(WorkerDiedError, match="a reply of more than 65536 bytes"):
        worker(source).ask(REQUEST, timeout_s=60, take_turn=lambda: None)


def test_lines_without_an_end_stay_in_the_pipe(worker) -> None:
    """And are not taken for replies to later requests."""
    asked = worker("""yes '{"number": 1, "reply": {"kind": "failed", "blame": "plan", "message": "again"}}'""")
    assert asked.ask(REQUEST, timeout_s=60, take_turn=lambda: None) == Failed("plan", "again")
    assert asked._lines.qsize() <= 2
    with pytest.raises(WorkerDiedError, match="no reply to 'load' within 1 s"):
        asked.ask(REQUEST, timeout_s=1, take_turn=lambda: None)
    asked.kill()
    asked._reader.join(timeout=30)
    assert not asked._reader.is_alive()


def test_folder_of_a_stranger_has_no_say_in_the_imports_of_a_worker(tmp_path: Path, monkeypatch) -> None:
    for name in ("pydantic", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    asked = WorkerProcess(tmp_path / "logs" / "worker.log", {})
    with pytest.raises(WorkerDiedError, match="'gradients' came before 'load'"):
        asked.ask(CompareGradients("", ""), timeout_s=120, take_turn=lambda: None)
    assert not (tmp_path / "ran").exists()


class StopError(Exception):
    """Ends a worker that would wait for the next request."""


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"{}", b"\xff\xfe", b"[" * 10**6, b'{"kind": "load"}', b"9" * 10**6, b'{"kind": "stop"}', b"\0"],
)
def test_worker_answers_garbage(line: bytes) -> None:
    replies: list[bytes] = []

    class Pipe:
        def write(self, text: bytes) -> None:
            replies.append(text)

        def flush(self) -> None:
            raise StopError

    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    lines.put(line)
    with pytest.raises(StopError):
        _answer_all(lines, Pipe())  # type: ignore[arg-type]
    assert replies[0].startswith(b'{"number":1,"reply":{"blame":"internal","message":"not a request: ')
    assert len(replies[0]) < 2000
