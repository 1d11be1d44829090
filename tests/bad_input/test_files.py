"""Files are read up to a size and written whole; what stood there before a failure stands there after it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from actune import files
from actune.config import load_space, load_study_file
from actune.errors import ActuneError, UsageError
from actune.export import Export, write_export
from actune.export.spec import GENERATED_MARK
from actune.files import read_bytes, read_text, write_whole
from actune.plan import load_plan
from actune.target_spec import parse_target_spec

EXPORT = Export((("a.toml", "schema = 1\n" * 2000), ("b.py", f"{GENERATED_MARK}\nnew\n" * 2000)), (), "")
OLD = {"a.toml": "old\n", "b.py": f"{GENERATED_MARK}\nold\n"}


def hf_config(path: Path) -> None:
    from actune.targets.hf_config import _read

    _read(parse_target_spec(f"hf:{path}"))


READERS = [load_plan, lambda path: load_space(str(path)), load_study_file]


@pytest.mark.parametrize("read", READERS, ids=["plan", "space", "study"])
@pytest.mark.parametrize("kind", ["large", "pipe", "zero", "folder", "circle", "long", "unreadable", "nul"])
def test_no_reader_takes_what_is_no_small_file(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "large":
        with path.open("wb") as file:
            file.truncate(100 * 2**20)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    path = {"zero": Path("/dev/zero"), "long": tmp_path / ("x" * 5000), "nul": tmp_path / "a\0b"}.get(kind, path)
    with pytest.raises(UsageError):
        read(path)


@pytest.mark.parametrize("kind", ["large", "code"])
def test_config_of_a_model_is_only_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if kind == "large":
        path.write_bytes(b" " * (2**20 + 1))
    else:
        path.write_text('{"model_type": "llama", "text_config": {"attn_implementation": "someone/kernel"}}')
    message = "at most 1048576 are read" if kind == "large" else "names code outside of transformers: 'someone/kernel'"
    with pytest.raises(UsageError, match=message):
        hf_config(path)


def test_file_that_grows_is_read_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    small = os.stat_result((0o100644, *os.stat(path)[1:6], 10, *os.stat(path)[7:10]))
    monkeypatch.setattr(files.os, "fstat", lambda _: small)
    with pytest.raises(UsageError, match="has 101 bytes; at most 100 are read"):
        read_bytes(path, what="file", max_bytes=100)


def test_text_is_utf8_with_any_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("é\r\nb\rc\n".encode())
    assert read_text(path, what="file", max_bytes=100) == "é\nb\nc\n"


def lay_out(folder: Path) -> None:
    for name, text in OLD.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("call", ["open", "fdopen", "fsync", "chmod", "link", "replace", "mkstemp"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_export_that_fails_at_any_call_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int
) -> None:
    lay_out(tmp_path)
    owner = files.tempfile if call == "mkstemp" else os
    original, calls = getattr(owner, call), 0

    def failing(*arguments, **options):
        nonlocal calls
        calls += 1
        # A full disk stays full, but a file can still get another name.
        if calls == number or (calls > number and code == errno.ENOSPC and call != "replace"):
            raise OSError(code, os.strerror(code))
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, failing)
        if call == "link":  # where a file can't have two names, it is copied
            write_export(EXPORT, tmp_path / "a.toml")
        else:
            with pytest.raises(UsageError, match="Nothing was changed"):
                write_export(EXPORT, tmp_path / "a.toml")
    assert content(tmp_path) == (dict(EXPORT.files) if call == "link" else OLD)


@pytest.mark.parametrize(
    "write", [lambda path: write_export(EXPORT, path), lambda path: write_whole(path, b"x" * 20_000)]
)
def test_limit_on_the_size_of_files(tmp_path: Path, write: Callable[[Path], object]) -> None:
    lay_out(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises((OSError, UsageError), match="File too large"):
            write(tmp_path / "a.toml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert content(tmp_path) == OLD


@pytest.mark.parametrize("kind", ["device", "pipe", "circle", "long"])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/full")
    path = tmp_path / ("x" * 300) if kind == "long" else path
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UsageError, match="can't be written"):
        write_export(Export(EXPORT.files[:1], (), ""), path)
    with pytest.raises((OSError, RuntimeError)):
        write_whole(path, b"")
    assert sorted(os.listdir(tmp_path)) == before
    assert not Path("/dev/full").is_file()


def test_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    write_whole(tmp_path / ("x" * 255), b"a")
    write_export(Export(EXPORT.files[:1], (), ""), tmp_path / ("y" * 255))
    write_export(Export(EXPORT.files[:1], (), ""), tmp_path / ("y" * 255))
    assert sorted(map(len, os.listdir(tmp_path))) == [255, 255]


def test_plan_of_a_frontier_and_a_picture_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actune.cli.frontier import _write
    from actune.cli.plot import draw_frontier

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def draw() -> None:
        title = "a $\\frac{$ name\x1b[2J"
        draw_frontier([], tmp_path / "p.svg", title=title, reference="$x", budgets_bytes=[], device_bytes=None)

    _write("old", tmp_path / "a.toml")
    draw()
    before = content(tmp_path)
    assert "\x1b" not in before["p.svg"]
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: _write("new", tmp_path / "a.toml"), draw):
        with pytest.raises(ActuneError, match="can't be written: No space left"):
            write()
    assert content(tmp_path) == before
