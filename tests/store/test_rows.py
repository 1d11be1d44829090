"""Records from rows that another program may have written: checked once for each kind of values, and never trusted."""

from __future__ import annotations

from typing import Any

import pytest

from actune.errors import StorageError
from actune.predictions import PredictedNumbers
from actune.store.rows import record_from

GOOD = ("0123456789abcdef", None, 2**30, 0.25)


def made(values: tuple[Any, ...]) -> PredictedNumbers:
    return record_from(PredictedNumbers, values)


def test_a_value_that_is_converted_is_converted_each_time() -> None:
    for _ in range(2):
        assert made((b"0123456789abcdef", None, 2**30, 0.25)) == PredictedNumbers(*GOOD)


@pytest.mark.parametrize(
    "values",
    [
        (7, None, 2**30, 0.25),
        ("0123456789abcdef", None, "many", 0.25),
        ("0123456789abcdef", None, 2**30, float("nan")),
        ("0123456789abcdef", None, 2**30, float("inf")),
        ("0123456789abcdef", None, 0.5, 0.25),
    ],
)
def test_a_value_that_no_record_may_have_is_refused_before_and_after_good_ones(values: tuple[Any, ...]) -> None:
    for _ in range(2):
        with pytest.raises(StorageError, match="holds a PredictedNumbers that this actune can't read"):
            made(values)
        assert made(GOOD) == PredictedNumbers(*GOOD)
