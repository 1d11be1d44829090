"""What comes from outside (plan TOML, space and study YAML, the worker's lines) becomes values here, or a clear error.

The one home of pydantic.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from actune.errors import UsageError

T = TypeVar("T")


class OutsideModel(BaseModel):
    """A table of a file that people write: strict types, and unknown keys are errors that suggest the right one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key_message(str(key), cls.model_fields))
        return data


def unknown_key_message(key: str, known: Mapping[str, Any]) -> str:
    """`unknown key 'x'`, with the nearest known key if one is near, and all that are known."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown key '{key}'.{hint} Known keys: {', '.join(known)}"


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def validate(kind: type[T], data: Any, *, source: str, error: type[UsageError] = UsageError) -> T:
    """`data` (plain lists, dicts and scalars) as a value of `kind`.

    Args:
        kind: an OutsideModel.
        data: what a parser returned.
        source: what to call the origin in the message, such as a file's path.
        error: the class of the error raised.

    Raises:
        UsageError: (or `error`) the data does not fit; the message names each key, its value and what was expected.
    """
    try:
        value: T = _adapter(kind).validate_python(data)  # type: ignore[arg-type]  # a type is hashable
    except ValidationError as failure:
        raise error(f"{source}: {explain(failure)}") from None
    return value


def take_schema(data: dict[str, Any], *, source: str, error: type[UsageError] = UsageError) -> None:
    """Removes the key `schema` from a file's table, having checked that it is 1, the only version so far.

    Raises:
        UsageError: (or `error`) the key is missing or has another value.
    """
    schema = data.pop("schema", None)
    if schema != 1 or isinstance(schema, bool):
        raise error(f"{source}: schema: {shorten(schema)} is not a version that this actune reads. Expected schema 1.")


def explain(failure: ValidationError) -> str:
    """The first three problems as `key: what is wrong (got value)`."""
    problems = []
    for item in failure.errors()[:3]:
        where = ".".join(str(part + 1) if isinstance(part, int) else part for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in ("value_error", "missing") else f" (got {shorten(item['input'])})"
        problems.append(f"{where}: {message}{got}" if where else f"{message}{got}")
    return "; ".join(problems) + "."


def shorten(value: Any, limit: int = 80) -> str:
    """The value's repr, cut to a length that fits a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def to_json(value: Any) -> str:
    """One line of JSON for a dataclass of `actune.records`. NaN is an error: no reader has to expect one."""
    text = json.dumps(asdict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which stands for a byte of a file's name that is no UTF-8, can't be read back or stored.
    return text.encode(errors="replace").decode()


def from_json(kind: Any, line: str | bytes) -> Any:
    """The inverse of `to_json`.

    Args:
        kind: a dataclass, or a union of dataclasses that differ in a Literal field `kind`.
        line: JSON.

    Raises:
        ValueError: the line is no JSON, or no value of that kind.
    """
    return _adapter(kind).validate_json(line)
