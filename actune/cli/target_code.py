"""Which code a target's name would have a worker import: found without importing any of it."""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
import sys
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path

from actune.errors import UsageError, cut
from actune.target_spec import TargetSpec

_MAX_NAMED = 300
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TargetCode:
    """A target's code, as it would be imported now.

    Attributes:
        place: the file, or what its top-level module or package is imported from; links resolved.
        sha256: of the content of the file that is named, and of the packages around it; hexadecimal.
        named: what of it is called, and with which options.
    """

    place: str
    sha256: str
    named: str


def target_code(spec: TargetSpec) -> TargetCode:
    """The code of a target of the user's own.

    Raises:
        UsageError: there is none, or it can't be read.
    """
    if spec.family == "file":
        path = Path(spec.location).resolve()
        place, paths = str(path), [path]
    else:
        place, paths = _find_module(spec)
    options = "&".join(f"{key}={value}" for key, value in sorted(spec.options))
    named = f"{spec.attribute}?{options}" if options else spec.attribute
    if len(named) > _MAX_NAMED:
        named = f"{cut(named)} sha256:{hashlib.sha256(named.encode(errors='surrogatepass')).hexdigest()}"
    return TargetCode(place, _sha256(spec, paths), named)


def _find_module(spec: TargetSpec) -> tuple[str, list[Path]]:
    """Where the top-level module or package is, and the files that importing the name runs, as far as there are any."""
    importlib.invalidate_caches()
    place, paths = "", []
    name, within = "", _path_of_workers()
    for part in spec.location.split("."):
        name = f"{name}.{part}" if name else part
        found = _find(name, within)
        if found is None:
            raise UsageError(
                f"target '{spec.text}': there is no module '{name}' in the current folder or installed, so it can't be "
                "said what would be imported."
            )
        within = list(found.submodule_search_locations or ())
        path = _file_of(found)
        paths += [] if path is None else [path]
        place = place or str(path or (Path(within[0]).resolve() if within else f"{found.origin} {name}"))
    return place, paths


def _path_of_workers() -> list[str]:
    """Where a worker looks for modules: in the current folder, then as this process does, but not beside its script."""
    from_variable = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [str(Path.cwd()), *filter(None, from_variable), *sys.path[1:]]


def _find(name: str, within: list[str]) -> ModuleSpec | None:
    is_top = "." not in name
    for finder in (BuiltinImporter, FrozenImporter) if is_top else ():
        if (found := finder.find_spec(name)) is not None:
            return found
    if (found := PathFinder.find_spec(name, within)) is not None:
        return found
    # Editable installs have finders of their own.
    others = [one for one in sys.meta_path if one not in (BuiltinImporter, FrozenImporter, PathFinder)]
    specs = (finder.find_spec(name, None if is_top else within) for finder in others)
    return next((found for found in specs if found is not None), None)


def _file_of(found: ModuleSpec) -> Path | None:
    """The module's file, or the archive that holds it; None for what is built in and for namespace packages."""
    if not found.has_location or found.origin is None:
        return None
    path = Path(found.origin).resolve()
    return next((one for one in (path, *path.parents) if one.is_file()), None)


def _sha256(spec: TargetSpec, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise UsageError(f"target '{spec.text}': {path} is no regular file. Expected a Python file.")
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise UsageError(f"target '{spec.text}': {path} can't be read: {error.strerror}.") from None
    return digest.hexdigest()
