"""What comes from outside (plan TOML, space and study YAML, the worker's lines) becomes values here, or a clear error.

The one home of pydantic.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from actune.errors import UsageError, cut
from actune.errors import shorten as shorten

T = TypeVar("T")

MAX_DEPTH = 64

# What may be a number that no record may hold. Most lines have none, and pydantic reads JSON far faster than Python.
_ODD_NUMBER = re.compile(rb"NaN|Infinity|(?<![\d.])\d{19}|\d[eE]\+?0*[1-9]\d\d")


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
    return f"unknown key {shorten(key)}.{hint} Known keys: {', '.join(known)}"


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


def check_plain(data: Any, *, source: str, error: type[UsageError] = UsageError) -> None:
    """Checks what a parser returned of a file: whole numbers are of 64 bits, and nothing is nested without end.

    Python's numbers have no end, and what computes with them or shows them may take as long.

    Raises:
        UsageError: (or `error`) a number is out of range, or lists and tables are nested too deeply.
    """
    todo = [(data, 0)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise error(f"{source} has a whole number of {value.bit_length()} bits. Expected at most 64 bits.")
        if isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                raise error(f"{source} is nested too deeply. Expected at most {MAX_DEPTH} levels.")
            children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            todo.extend((child, depth + 1) for child in children)


def explain(failure: ValidationError) -> str:
    """The first three problems as `key: what is wrong (got value)`."""
    problems = []
    for item in failure.errors(include_url=False)[:3]:
        where = ".".join(str(part + 1) if isinstance(part, int) else cut(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in ("value_error", "missing") else f" (got {shorten(item['input'])})"
        problems.append(f"{where}: {message}{got}" if where else f"{message}{got}")
    return "; ".join(problems) + "."


def to_json(value: Any) -> str:
    """One line of JSON for a dataclass of `actune.records`. NaN is an error: no reader has to expect one."""
    text = json.dumps(asdict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair, which stands for a byte of a file's name that is no UTF-8, can't be read back or stored.
    return text.encode(errors="replace").decode()


def _check_numbers(line: str | bytes) -> None:
    """Raises ValueError for a number that `to_json` never writes; pydantic takes NaN and integers of any size."""
    content = line.encode(errors="surrogatepass") if isinstance(line, str) else line
    if _ODD_NUMBER.search(content) is None:
        return
    try:
        json.loads(content, parse_constant=_refuse_number, parse_int=_integer, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_number(text: str) -> None:
    raise ValueError(f"{cut(text)} is no finite number, and no integer of 64 bits")


def _integer(text: str) -> None:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        _refuse_number(text)


def _finite(text: str) -> None:
    if not math.isfinite(float(text)):
        _refuse_number(text)


def from_json(kind: Any, line: str | bytes) -> Any:
    """The inverse of `to_json`.

    Args:
        kind: a dataclass, or a union of dataclasses that differ in a Literal field `kind`.
        line: JSON.

    Raises:
        ValueError: the line is no JSON, or no value of that kind; a number is not finite, or is no 64-bit integer.
    """
    if not isinstance(line, str | bytes):
        raise ValueError(f"{shorten(line)} is no text")
    _check_numbers(line)
    return _adapter(kind).validate_json(line)


def to_record(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of plain values from elsewhere, such as a database's row; fields that are records stay as they are.

    Raises:
        ValueError: a value has another type than its field, is not finite, or is an integer of more than 64 bits.
    """
    for name, value in values.items():
        is_odd = not math.isfinite(value) if isinstance(value, float) else False
        if is_odd or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            raise ValueError(f"{name}: {shorten(value)} is no finite number, and no integer of 64 bits")
    try:
        record: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]  # a type is hashable
    except ValidationError as failure:
        raise ValueError(explain(failure)) from None
    return record
