"""How far predicted peaks may be off."""

from __future__ import annotations

import pytest

from actune.search.peaks import PROVEN_AFTER, UNPROVEN_MARGIN, PeakMargins


def test_the_margin_is_the_worst_error_once_there_are_enough() -> None:
    margins = PeakMargins()
    assert margins.too_high_by("off") == UNPROVEN_MARGIN
    margins.learn("off", 1030, 1000, whole=True)
    assert margins.too_high_by("off") == pytest.approx(0.03)
    exact = PeakMargins()
    for _ in range(PROVEN_AFTER):
        exact.learn("off", 1000, 1000, whole=True)
    exact.learn("off", 900, 1000, whole=True)  # too low is no reason to run what is predicted too high
    assert exact.too_high_by("off") == 0.0


def test_a_prediction_that_was_too_low_lowers_the_aim_of_its_mode_alone() -> None:
    margins = PeakMargins()
    assert margins.aim_bytes("layer", 1000) == 1000
    margins.learn("layer", 1000, 1250, whole=True)
    margins.learn("layer", 1000, 1100, whole=True)
    assert margins.aim_bytes("layer", 1000) == 800
    assert margins.aim_bytes("off", 1000) == 1000


def test_a_plan_that_was_stopped_over_the_budget_says_that_its_prediction_was_too_low_never_that_it_was_right() -> None:
    margins = PeakMargins()
    for _ in range(PROVEN_AFTER):
        margins.learn("model", 1000, 1250, whole=False)
    assert margins.aim_bytes("model", 1250) == 1000
    assert margins.too_high_by("model") == UNPROVEN_MARGIN
