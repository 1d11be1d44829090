from __future__ import annotations

import pytest

from actune.errors import UsageError
from actune.units import Budget, format_bytes, format_duration, parse_duration_s

SIZES = {
    "1B": 1,
    "2KB": 2_000,
    "3MB": 3_000_000,
    "70GB": 70_000_000_000,
    "1TB": 10**12,
    "1KiB": 1024,
    "5MiB": 5 * 2**20,
    "64GiB": 64 * 2**30,
    "2TiB": 2**41,
    "1.5GiB": 3 * 2**29,
    "4.35GB": 4_350_000_000,  # 4.35 · 10⁹ in floating point may fall short
    "9007199254740993B": 2**53 + 1,  # no float
    " 70 gb ": 70_000_000_000,
    "64gib": 64 * 2**30,
    "0.5B": None,
    "0GB": None,
}


@pytest.mark.parametrize(("text", "size_bytes"), [(text, size) for text, size in SIZES.items() if size])
def test_sizes(text: str, size_bytes: int) -> None:
    budget = Budget.parse(text)
    assert (budget.absolute_bytes, budget.fraction_of_no_ac) == (size_bytes, None)
    assert budget.text == text.strip()
    assert budget.resolve_bytes(None) == budget.resolve_bytes(5) == size_bytes


@pytest.mark.parametrize(("text", "fraction"), [("60%", 0.6), ("100 %", 1.0), (" 12.5%", 0.125), ("0.1%", 0.001)])
def test_shares_of_the_peak_without_ac(text: str, fraction: float) -> None:
    budget = Budget.parse(text)
    assert budget.absolute_bytes is None
    assert budget.fraction_of_no_ac == pytest.approx(fraction)
    assert budget.resolve_bytes(10_000) == int(10_000 * fraction)
    with pytest.raises(UsageError, match="Give the budget as a size, such as 70GB"):
        budget.resolve_bytes(None)


@pytest.mark.parametrize(
    "text", ["", "70", "GB", "70G", "70 XB", "-70GB", "1e3GB", "70GB 5", "60%%", "%", "60 percent", "seventy", "nan%"]
)
def test_text_that_is_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not understood\. Expected a size such as 70GB .* such as 60%"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0GB", "is 0 bytes; it must be more than zero"),
        ("0.5B", "is 0 bytes; it must be more than zero"),
        ("9" * 400 + "GB", r"less than 2\^63"),
        ("0%", "more than 0%"),
        ("100.1%", "at most 100%"),
    ],
)
def test_budget_out_of_range(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget.parse(text)


def test_budget_is_a_size_or_a_share() -> None:
    with pytest.raises(UsageError, match="either a size or a percentage"):
        Budget("x", 5, 0.5)
    with pytest.raises(UsageError, match="either a size or a percentage"):
        Budget("x", None, None)


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("90s", 90.0),
        ("15m", 900.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1h30m", 5400.0),
        ("1 h 30 m", 5400.0),
        ("0.5s", 0.5),
        ("1.5h", 5400.0),
        ("90", 90.0),
        ("1d2h3m4s", 93784.0),
    ],
)
def test_durations(text: str, duration_s: float) -> None:
    assert parse_duration_s(text) == duration_s


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "5ms", "1h30", "-5s", "5s!", "0s", "0", "-1", "nan", "inf", "9" * 400 + "d"]
)
def test_text_that_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (66_165_145, "63.1 MiB"),
        (2**30, "1.0 GiB"),
        (2**41 + 2**40, "3.00 TiB"),
        (2**53, "8192.00 TiB"),
    ],
)
def test_format_bytes(size_bytes: int | None, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize("size_bytes", [1, 7 * 2**10, 13 * 2**20, 31 * 2**30, 3 * 2**40])
def test_formatted_sizes_parse_back(size_bytes: int) -> None:
    assert Budget.parse(format_bytes(size_bytes)).absolute_bytes == size_bytes


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (None, "–"),
        (0.0123, "12.3 ms"),
        (1.2355, "1.24 s"),
        (185.2, "3m 05s"),
        (7800.0, "2h 10m"),
        (3599.6, "1h 00m"),
    ],
)
def test_format_duration(duration_s: float | None, text: str) -> None:
    assert format_duration(duration_s) == text


@pytest.mark.parametrize("duration_s", [1.25, 185.0, 7800.0])
def test_formatted_durations_parse_back(duration_s: float) -> None:
    assert parse_duration_s(format_duration(duration_s)) == duration_s
