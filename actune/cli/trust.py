"""Whose code a search may import: what the user named on a command line, now or before.

A study's record says which target it is of, and that record may come from a stranger. So what the user has named is
kept outside of any database, in a file of the user's own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actune.cli.target_code import TargetCode, target_code
from actune.cli.terminal import say
from actune.errors import UsageError
from actune.files import read_bytes, write_whole
from actune.target_spec import parse_target_spec

MAX_ENTRIES = 1000
MAX_TRUST_BYTES = 2**21

_KEYS = {"place", "sha256", "named"}


def check_target(text: str, *, study: str, named_now: bool, trust: bool) -> None:
    """Lets a search go on if its target's code is the user's choice, and remembers that it is.

    Args:
        text: the target as the study has it.
        study: its name, for messages.
        named_now: the user named the target on this command line, or in a study file that is on it.
        trust: the user says on this command line to trust what the study names.

    Raises:
        UsageError: the code is one that the user has not named before, it has changed since, or there is none; the
            message says which, and what to do.
    """
    spec = parse_target_spec(text)
    if not spec.is_users_own:
        return  # built-in targets, configs and torchtitan run what is installed
    if named_now or trust:
        try:
            _remember(target_code(spec))
        except _TrustFileError as error:
            say(f"what was named is not remembered, so `actune resume {study}` will ask for --trust-target: {error}")
        except UsageError:
            if not named_now:
                raise
            # There is no such module: the worker, which finds it in the same way, says so with its near ones.
        return
    code = target_code(spec)
    why = _why_not(code)
    if why is not None:
        raise UsageError(
            f"study '{study}' would import its target '{text}' from {code.place}: {why}. Look at that code: if you "
            f"want it to run, give --trust-target, or name it by --target '{text}'."
        )


def check_cluster(address: str | None, *, study: str, named_now: bool, trust: bool) -> None:
    """Lets a search use a Ray cluster if it is the user's choice, and remembers that it is. A cluster runs code.

    Args:
        address: as the study has it; None for the cluster that the user's own environment names.
        study: its name, for messages.
        named_now: the user named the address on this command line, or in a study file that is on it.
        trust: the user says on this command line to trust what the study names.

    Raises:
        UsageError: the address is one that the user has not named before.
    """
    if address is None:
        return
    cluster = TargetCode(f"the Ray cluster at {address}", "", "")
    if named_now or trust:
        try:
            _remember(cluster)
        except _TrustFileError as error:
            say(f"what was named is not remembered, so `actune resume {study}` will ask for --trust-target: {error}")
        return
    why = _why_not(cluster)
    if why is not None:
        raise UsageError(
            f"study '{study}' would run on {cluster.place}: {why}. If that is your cluster, give --trust-target, or "
            f"name it by `actune search --study {study} --address {address}`."
        )


def _why_not(code: TargetCode) -> str | None:
    """Why code is not trusted; None if it is."""
    try:
        entries = _read(_trust_path())
    except _TrustFileError as error:
        return f"whether you have named it before is not known, as {error}"
    here = [entry for entry in entries if entry.place == code.place]
    if code in here:
        return None
    if not here:
        return "the study names it, and you have not named it on a command line before"
    if all(entry.sha256 != code.sha256 for entry in here):
        return "it has changed since you named it"
    return f"the study asks for {code.named} in it, and what you have named is {', '.join(e.named for e in here[-3:])}"


class _TrustFileError(Exception):
    """The file can't be read or written; the message says why."""


def _remember(code: TargetCode) -> None:
    """Adds an entry as the newest one; the oldest are dropped where there are too many.

    Raises:
        _TrustFileError: that can't be.
    """
    path = _trust_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(path.with_name("trusted.lock")):
            before = _read(path)
            if before and before[-1] == code:
                return
            entries = [*(entry for entry in before if entry != code), code][-MAX_ENTRIES:]
            text = json.dumps({"schema": 1, "trusted": [asdict(entry) for entry in entries]}, indent=1)
            write_whole(path, text.encode(), mode=0o600)
    except (OSError, RuntimeError) as error:
        raise _TrustFileError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _alone(lock_path: Path) -> Iterator[None]:
    """Keeps two searches that start at once from losing each other's entry."""
    with lock_path.open("a") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> list[TargetCode]:
    """The entries, the oldest first; none where there is no file yet.

    Raises:
        _TrustFileError: the file can't be read, or is none that this process's user alone may write.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _TrustFileError(f"{path} can't be read: {error.strerror}") from None
    if sys.platform != "win32" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise _TrustFileError(f"{path} may be written by others. Take it away, or see to its owner and rights")
    try:
        document: Any = json.loads(read_bytes(path, what="the file of trusted targets", max_bytes=MAX_TRUST_BYTES))
        rows = document["trusted"]
        if not all(row.keys() == _KEYS and all(isinstance(value, str) for value in row.values()) for row in rows):
            raise ValueError
        return [TargetCode(**row) for row in rows]
    except UsageError as error:
        raise _TrustFileError(str(error).rstrip(".")) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _TrustFileError(f"{path} is damaged: it is no list of trusted targets. Move it away") from None


def _trust_path() -> Path:
    """In the user's state folder (XDG Base Directory Specification, which has relative paths ignored).

    Raises:
        _TrustFileError: the user has no home.
    """
    configured = os.environ.get("XDG_STATE_HOME", "")
    try:
        folder = Path(configured) if os.path.isabs(configured) else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise _TrustFileError(f"there is no home folder to keep it in: {error}") from None
    return folder / "actune" / "trusted.json"
