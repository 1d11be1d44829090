"""A study's budgets as its user wrote them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actune.report import named_budgets
from actune.study_records import StudyRecord
from tests.store.examples import ENVIRONMENT, SETTINGS, TARGET


@pytest.mark.parametrize(
    ("budget", "is_frontier", "sizes", "named"),
    [
        ("60%", False, None, {}),
        ("60%", False, (600,), {"60%": 600}),
        ("60%,85%,70%", False, (850, 700, 600), {"60%": 600, "85%": 850, "70%": 700}),
        ("1KB,60%,700B,90%", False, (1000, 900, 700, 600), {"1KB": 1000, "90%": 900, "700B": 700, "60%": 600}),
        ("60%,60.0%", False, (600,), {"60%": 600, "60.0%": 600}),
        ("1KB,1000B", False, (1000,), {"1KB": 1000, "1000B": 1000}),
        ("600B,60%", False, (600,), {"600B": 600}),  # the share comes to the same size
        ("100%", True, (1000, 800, 600), {"100%": 1000}),
    ],
)
def test_names(budget: str, is_frontier: bool, sizes: tuple[int, ...] | None, named: dict[str, int]) -> None:
    settings = replace(SETTINGS, budget=budget, frontier=is_frontier)
    record = StudyRecord("a", settings, TARGET, ENVIRONMENT, sizes[0] if sizes else None, None, "", sizes)
    assert named_budgets(record) == named
