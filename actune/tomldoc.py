"""TOML text: read with the standard library, written and edited with tomlkit, whose one home this is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.container import OutOfOrderTableProxy
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Table

from actune.errors import UsageError


def read(text: str, *, source: str, error: type[UsageError] = UsageError) -> dict[str, Any]:
    """The document as plain values.

    Raises:
        UsageError: (or `error`) the text is no TOML; the message has the line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise error(f"{source} is not TOML: {failure}.") from None


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
        UsageError: the text is no TOML, or a section's name stands for something that is no table.
    """
    try:
        toml = tomlkit.parse(text)
    except TOMLKitError as failure:
        raise UsageError(f"{source} is not TOML: {failure}.") from None
    for name, values in sections.items():
        if name not in toml:
            toml.add(name, tomlkit.table())
        section = toml[name]
        if not isinstance(section, Table | InlineTable | OutOfOrderTableProxy):
            raise UsageError(f"{source}: '{name}' is not a table, so its keys {', '.join(values)} can't be set.")
        for key, value in values.items():
            section[key] = value
    return tomlkit.dumps(toml)
