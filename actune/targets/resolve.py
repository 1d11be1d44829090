"""From `--target`'s text to a target: imports the user's code, and tells a wrong name from code that is at fault."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from actune.errors import TargetError, UsageError
from actune.files import read_bytes
from actune.target_spec import TargetSpec, parse_target_spec
from actune.targets.base import BoundTarget, blame_target, importable
from actune.targets.builtin import builtin_target
from actune.targets.from_source import FromSource, SourceAlone
from actune.targets.hf import hf_target, transformers_version
from actune.targets.torchtitan import torchtitan_target, torchtitan_version

MAX_SOURCE_BYTES = 2**24


def load_target(spec_text: str) -> BoundTarget:
    """The target that `--target` names. The model is not kept, and torch's CPU generator is left as it was.

    Raises:
        UsageError: what is named does not exist, or an option does not fit it.
        TargetError: the user's code raised (the error is the cause), or what it returned is no target.
    """
    spec = parse_target_spec(spec_text)
    if spec.family == "builtin":
        return BoundTarget(builtin_target(spec), name=spec.text)
    if spec.family == "hf":
        return BoundTarget(hf_target(spec), name=spec.text)
    if spec.family == "torchtitan":
        return BoundTarget(torchtitan_target(spec), name=spec.text)
    # The user's code may draw random numbers while it is imported or called. Then the weights would depend on that, and
    # not on the seed that the caller sets before model() alone.
    with torch.random.fork_rng(devices=[]):
        if spec.family == "file":
            folder = Path(spec.location).resolve().parent
            module = _import_file(spec, folder)
        else:
            folder = Path.cwd()
            module = _import_module(spec, folder)
        return _bind_users_own(spec, _attribute(spec, module), folder)


def source_fingerprint(spec: TargetSpec) -> str:
    """16 hex digits: equal where attribute, options and the target's own source file are equal, wherever it lies.

    What that file imports is not in it, apart from the versions of transformers for `hf` and of torchtitan; a change
    there that alters modules or shapes shows in `actune.profiler.structure_fingerprint`.

    Raises:
        UsageError: the module does not exist, or transformers or torchtitan is not installed.
    """
    digest = hashlib.sha256()
    for part in (spec.family, spec.attribute, *(f"{key}={value}" for key, value in sorted(spec.options))):
        digest.update(part.encode() + b"\0")
    match spec.family:
        case "builtin":
            digest.update(spec.location.encode() + b"\0")
            paths = _own_sources("builtin", "dense", "moe")
        case "hf":
            digest.update(transformers_version().encode() + b"\0")
            paths = [Path(spec.location), *_own_sources("hf", "hf_config", "hf_tasks")]
        case "torchtitan":
            digest.update(spec.location.encode() + b"\0" + torchtitan_version().encode() + b"\0")
            paths = _own_sources("torchtitan")
        case "file":
            paths = [Path(spec.location)]
        case "module":
            paths = [_module_source(spec)]
    for path in paths:
        digest.update(read_bytes(path, what=f"target '{spec.text}': the file", max_bytes=MAX_SOURCE_BYTES) + b"\0")
    return digest.hexdigest()[:16]


def _own_sources(*rooms: str) -> list[Path]:
    """The files of this package that say what a target does, beside those that all have."""
    return [Path(__file__).with_name(f"{room}.py") for room in ("defaults", "tokens", *rooms)]


def _import_file(spec: TargetSpec, folder: Path) -> ModuleType:
    path = Path(spec.location).resolve()
    # Private and unique, so that it can't shadow an installed module; registered, so that dataclasses and pickle,
    # which look a class's module up by name, work in it.
    name = f"_actune_target_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path, loader=SourceAlone(name, str(path)))
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"target '{spec.text}': {path.name} can't be imported. Expected a Python file.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        with importable(folder), blame_target(spec.text, f"importing {path.name}"):
            module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(spec: TargetSpec, folder: Path) -> ModuleType:
    with importable(folder), blame_target(spec.text, f"importing {spec.location}"):
        importlib.invalidate_caches()
        from_source = FromSource(spec.location)
        sys.meta_path.insert(0, from_source)
        try:
            return importlib.import_module(spec.location)
        except ModuleNotFoundError as error:
            if not _is_missing_itself(spec, error):
                raise
            raise _no_module(spec, error) from None
        finally:
            sys.meta_path.remove(from_source)


def _is_missing_itself(spec: TargetSpec, error: ModuleNotFoundError) -> bool:
    """Whether the module named, or a package above it, is what is missing, not something that it imports."""
    missing = error.name or ""
    return spec.location == missing or spec.location.startswith(f"{missing}.")


def _no_module(spec: TargetSpec, error: ModuleNotFoundError) -> UsageError:
    return UsageError(
        f"target '{spec.text}': there is no module '{error.name}' in the current folder or installed. Expected "
        "package.module:attr; other targets are built-in names (`actune targets`), hf:path/to/config.json, "
        "torchtitan:family/flavor and path/to/file.py:attr."
    )


def _module_source(spec: TargetSpec) -> Path:
    with importable(Path.cwd()):
        try:
            found = importlib.util.find_spec(spec.location)
        except ModuleNotFoundError as error:
            if not _is_missing_itself(spec, error):
                raise
            raise _no_module(spec, error) from None
    if found is None:
        raise _no_module(spec, ModuleNotFoundError(name=spec.location))
    if found.origin is None or not Path(found.origin).is_file():
        raise UsageError(
            f"target '{spec.text}': the module '{spec.location}' has no source file. Expected a module written in "
            "Python, not a namespace package."
        )
    return Path(found.origin)


def _attribute(spec: TargetSpec, module: ModuleType) -> Any:
    if not hasattr(module, spec.attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches(spec.attribute, public, n=3)
        own = [
            name
            for name in public
            if callable(vars(module)[name]) and getattr(vars(module)[name], "__module__", None) == module.__name__
        ]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"target '{spec.text}': {spec.location} has no '{spec.attribute}'.{hint} Classes and functions in it: "
            f"{', '.join(own) or 'none'}."
        )
    return getattr(module, spec.attribute)


def _bind_users_own(spec: TargetSpec, attribute: Any, folder: Path) -> BoundTarget:
    if isinstance(attribute, nn.Module):
        raise UsageError(
            f"target '{spec.text}': {spec.attribute} is a model that is already built. Expected what builds one: a "
            "Target, or a class or function that returns a new model at each call."
        )
    keywords = {key: _literal(value) for key, value in spec.options}
    if not callable(attribute):
        if keywords:
            raise UsageError(
                f"target '{spec.text}': {spec.attribute} is an object, not a class or a callable, so it takes no "
                f"options. Remove ?{spec.text.partition('?')[2]}"
            )
        return BoundTarget(attribute, name=spec.text, folder=folder)
    _check_keywords(spec, attribute, keywords)

    def call() -> Any:
        return attribute(**keywords)

    if isinstance(attribute, type) and issubclass(attribute, nn.Module):
        return BoundTarget(call, name=spec.text, folder=folder)
    # Only a call shows whether a function returns a Target or a model. A model is dropped again: model() builds the one
    # that the caller's seed gives.
    with importable(folder), blame_target(spec.text, f"{spec.attribute}()"):
        made = call()
    if isinstance(made, nn.Module):
        return BoundTarget(call, name=spec.text, folder=folder)
    if isinstance(made, type) or not hasattr(made, "model"):
        raise TargetError(
            f"target '{spec.text}': {spec.attribute}() gave a value of type {type(made).__name__}, which has no method "
            "model(). Expected a Target, an object with `def model(self)`, or an nn.Module."
        )
    return BoundTarget(made, name=spec.text, folder=folder)


def _check_keywords(spec: TargetSpec, attribute: Any, keywords: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(attribute)
    except ValueError:  # some callables written in C have none; then the call itself tells
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        known = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise UsageError(
            f"target '{spec.text}': {error}. {spec.attribute} takes: {known or 'no options'}. Options are given as "
            "?name=value&name=value."
        ) from None


def _literal(value: str) -> Any:
    """Numbers, True, False and None as Python writes them, in any case; any other text as it is."""
    for text in (value, value.capitalize()):
        try:
            literal = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            continue
        if literal is None or isinstance(literal, int | float):
            return literal
    return value
