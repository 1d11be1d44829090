"""Sizes, budgets and durations: from text to numbers and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from actune.errors import UsageError, shorten

_BYTES_PER_UNIT = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
MAX_BUDGETS = 64
MAX_BYTES = 2**63  # what databases take for an integer
_SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

MAX_DURATION_S = 1e9
_MAX_LENGTH = 1000  # of a text: Python's numbers have no end, and take their time

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])")


def _size_bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    factor = _BYTES_PER_UNIT.get(match[2].upper()) if match else None
    return None if match is None or factor is None else int(Decimal(match[1]) * factor)


@dataclass(frozen=True, slots=True)
class Budget:
    """The cap on the device's peak as the user gave it: absolute, or a share of the peak without AC."""

    text: str
    absolute_bytes: int | None
    fraction_of_no_ac: float | None

    def __post_init__(self) -> None:
        if (self.absolute_bytes is None) == (self.fraction_of_no_ac is None):
            raise UsageError(f"budget '{self.text}' must be either a size or a percentage.")
        if self.absolute_bytes is not None and not 0 < self.absolute_bytes < MAX_BYTES:
            raise UsageError(
                f"budget '{self.text}' is {self.absolute_bytes} bytes; it must be more than zero, and less than 2^63."
            )
        if self.fraction_of_no_ac is not None and not 0 < self.fraction_of_no_ac <= 1:
            raise UsageError(f"budget '{self.text}' must be more than 0% and at most 100% of the peak without AC.")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from `70GB`, `64GiB` or `60%`.

        Raises:
            UsageError: the text is neither a size nor a percentage, or is out of range.
        """
        if len(text) > _MAX_LENGTH:
            raise UsageError(f"budget {shorten(text)} has {len(text)} characters. Expected a size such as 70GB.")
        percent = _PERCENT.fullmatch(text)
        if percent is not None:
            return cls(text.strip(), None, float(percent[1]) / 100)
        size_bytes = _size_bytes(text)
        if size_bytes is None:
            raise UsageError(
                f"budget '{text}' is not understood. Expected a size such as 70GB (10^9 bytes each) or 64GiB (2^30 "
                "bytes each; units B, KB … TB, KiB … TiB), or a share of the peak without AC such as 60%."
            )
        return cls(text.strip(), size_bytes, None)

    @classmethod
    def parse_all(cls, text: str) -> tuple[Budget, ...]:
        """One budget, or several with commas between them; raises as `parse`, and:

        Raises:
            UsageError: one of them stands twice, or there are more than MAX_BUDGETS.
        """
        parts = text.split(",")
        if len(parts) > MAX_BUDGETS:
            raise UsageError(f"{len(parts)} budgets are more than a search takes. Expected at most {MAX_BUDGETS}.")
        budgets = tuple(cls.parse(part) for part in parts)
        if len(set(budgets)) < len(budgets):
            raise UsageError(f"budget '{text}' names one of them twice. Name each once.")
        return budgets

    def resolve_bytes(self, no_ac_peak_bytes: int | None) -> int:
        """The cap in bytes.

        Raises:
            UsageError: the budget is a share and the peak without AC is not known.
        """
        if self.absolute_bytes is not None:
            return self.absolute_bytes
        assert self.fraction_of_no_ac is not None
        if no_ac_peak_bytes is None:
            raise UsageError(
                f"budget '{self.text}' is a share of the peak without AC, but the target does not run without AC on "
                "this device. Give the budget as a size, such as 70GB."
            )
        return int(no_ac_peak_bytes * self.fraction_of_no_ac)


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `90s`, `15m`, `1h30m`, or of a bare number of seconds.

    Raises:
        UsageError: the text is no duration, not more than zero, or more than MAX_DURATION_S.
    """
    compact = text.replace(" ", "")
    if len(compact) > _MAX_LENGTH:
        raise UsageError(f"{shorten(text)} is not a duration. Expected a number and a unit, such as 90s or 1h30m.")
    try:
        duration_s = float(compact)
    except ValueError:
        parts = _DURATION_PART.findall(compact)
        if not parts or "".join(number + unit for number, unit in parts) != compact:
            raise UsageError(
                f"'{text}' is not a duration. Expected a number and a unit, such as 90s, 15m, 2h or 1h30m."
            ) from None
        duration_s = sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)
    if not 0 < duration_s <= MAX_DURATION_S:
        raise UsageError(f"'{text}' is not a duration: it must be more than zero, and at most {MAX_DURATION_S:g} s.")
    return duration_s


def format_bytes(size_bytes: int | None) -> str:
    """A size for people, in binary units: `63.1 MiB`."""
    if size_bytes is None:
        return "–"
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def format_duration(duration_s: float | None) -> str:
    """A duration for people: `12.3 ms`, `1.24 s`, `3m 05s`, `2h 10m`."""
    if duration_s is None:
        return "–"
    if duration_s < 1:
        return f"{duration_s * 1e3:.1f} ms"
    if duration_s < 60:
        return f"{duration_s:.2f} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes}m {seconds:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"
