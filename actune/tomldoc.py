"""TOML text: read with the standard library, written and edited with tomlkit, whose one home this is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.container import OutOfOrderTableProxy
from tomlkit.items import InlineTable, Table

from actune.boundary import check_plain
from actune.errors import UsageError

MAX_KEY_PARTS = 64

# Strings and comments, closed or not: each alternative takes all that it can and never gives it back, so a text is
# gone through once.
_STRINGS = re.compile(
    r'''"""(?:\\.|[^\\"]|"(?!""))*+(?:"{3,5})?|'{3}(?:[^']|'(?!'{2}))*+(?:'{3,5})?'''
    r"""|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?|\#[^\n]*+""",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?:\.[^.=,\[\]{{}}\n]*+){{{MAX_KEY_PARTS}}}")


def read(text: str, *, source: str, error: type[UsageError] = UsageError) -> dict[str, Any]:
    """The document as plain values.

    Raises:
        UsageError: (or `error`) the text is no TOML, and the message has the line and column; or a number or a nesting
            in it is out of range.
    """
    # The time that tomllib takes for a dotted key grows with the square of its parts.
    if _LONG_KEY.search(_STRINGS.sub("_", text)):
        raise error(f"{source} has a key of more than {MAX_KEY_PARTS} parts. Expected a few, such as a.b.c.")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise error(f"{source} is not TOML: {failure}.") from None
    except RecursionError:
        raise error(f"{source} is nested too deeply to be read. Expected a few levels.") from None
    except ValueError as failure:  # a number of thousands of digits
        raise error(f"{source} has a value that can't be read: {failure}.") from None
    check_plain(table, source=source, error=error)
    return table


def write(document: Mapping[str, Any], *, tables: Mapping[str, list[Mapping[str, Any]]] | None = None) -> str:
    """TOML text of a mapping in its order, then of `tables` as arrays of tables."""
    toml = tomlkit.document()
    sections = {key: value for key, value in document.items() if isinstance(value, Mapping)}
    for key, value in document.items():
        if key not in sections:
            toml.add(key, value)
    for key, rows in (tables or {}).items():
        array = tomlkit.aot()
        for row in rows:
            array.append(tomlkit.item(dict(row)))
        toml.add(key, array)
    for key, value in sections.items():
        toml.add(key, tomlkit.item(dict(value)))
    return tomlkit.dumps(toml)


def merge(text: str, sections: Mapping[str, Mapping[str, Any]], *, source: str) -> str:
    """`text` with the keys of each `[section]` set; comments, order and all other keys are kept.

    Raises:
        UsageError: the text is no TOML, a section's name stands for something that is no table, or tomlkit can't edit
            the text.
    """
    wanted = read(text, source=source)
    for name, values in sections.items():
        section = wanted.setdefault(name, {})
        if not isinstance(section, dict):
            raise UsageError(f"{source}: '{name}' is not a table, so its keys {', '.join(values)} can't be set.")
        section |= values
    try:
        edited = _edited(text, sections)
        is_right = tomllib.loads(edited) == wanted
    except Exception as failure:  # the text is TOML, as was seen above, so tomlkit is at fault in some way of its own
        raise UsageError(
            f"{source} is TOML that can't be edited ({type(failure).__name__}: {failure}). Write the export to a file "
            "of its own, and take its keys over."
        ) from None
    if not is_right:
        raise UsageError(
            f"{source} is TOML in which keys can't be set without changing others. Write the export to a file of its "
            "own, and take its keys over."
        )
    return edited


def _edited(text: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    toml = tomlkit.parse(text)
    for name, values in sections.items():
        if name not in toml:
            toml.add(name, tomlkit.table())
        section = toml[name]
        assert isinstance(section, Table | InlineTable | OutOfOrderTableProxy)
        for key, value in values.items():
            section[key] = value
    return tomlkit.dumps(toml)
