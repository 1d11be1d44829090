"""Files that people name: read up to a size, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from actune.errors import UsageError


def read_bytes(path: str | Path, *, what: str, max_bytes: int, error: type[UsageError] = UsageError) -> bytes:
    """A regular file's content.

    Args:
        path: of the file.
        what: what to call it in messages, such as `plan`.
        max_bytes: no more is read, however large the file says it is or becomes.
        error: the class of the error raised.

    Raises:
        UsageError: (or `error`) it is not there, not readable, no regular file, or too large.
    """
    try:
        # A named pipe without a writer, or a terminal, would else be waited for as soon as it is opened.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as failure:
        raise error(f"{what} {path} can't be read: {failure.strerror}.") from None
    except ValueError:  # a NUL character, which a YAML file's text may have
        raise error(f"{what} {str(path)!r} can't be read: this can't be a file's name.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else "Is a pipe or a device"
        raise error(f"{what} {path} can't be read: {kind}. Expected a regular file.")
    with os.fdopen(descriptor, "rb") as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as failure:
            raise error(f"{what} {path} can't be read: {failure.strerror}.") from None
    if len(content) > max_bytes:
        size_bytes = max(status.st_size, len(content))
        raise error(f"{what} {path} has {size_bytes} bytes; at most {max_bytes} are read.")
    return content


def read_text(path: str | Path, *, what: str, max_bytes: int, error: type[UsageError] = UsageError) -> str:
    """A regular file's content as text; the arguments are those of `read_bytes`.

    Raises:
        UsageError: (or `error`) as `read_bytes`, or it is no UTF-8 text.
    """
    content = read_bytes(path, what=what, max_bytes=max_bytes, error=error)
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise error(f"{what} {path} is not UTF-8 text.") from None


def write_whole(path: str | Path, content: bytes, *, mode: int | None = None) -> None:
    """Replaces a file, or makes it: whatever goes wrong, what stood there before still does.

    A link stays a link: what it points to is replaced. `mode` is as in `write_beside`.

    Raises:
        OSError: it can't be written; nothing was changed.
    """
    target = Path(path).resolve()
    refuse_irregular(target)
    temporary = write_beside(target, content, mode=mode)
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def refuse_irregular(path: Path) -> None:
    """Keeps a device, a pipe or a folder from being replaced by a file.

    Raises:
        OSError: there is something of that kind.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file, which alone is replaced", str(path))


def write_beside(target: Path, content: bytes, *, mode: int | None = None) -> Path:
    """A temporary file in the folder of `target`, flushed to the disk, ready to replace it.

    Args:
        target: what it is for.
        content: all of it.
        mode: permission bits; None for those of the target if it is there, else those of any new file.

    Raises:
        OSError: it can't be written; nothing is left behind.
    """
    # The name is cut, since a target's may be as long as names can be.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is None:
            # mkstemp makes a file that only its owner may read; the target is to have the rights of any other file.
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        os.chmod(name, mode)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk.

    Raises:
        OSError: it can't be.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
