"""How far predicted peaks may be off, learned from the trials of each compile mode."""

from __future__ import annotations

from dataclasses import dataclass

from actune.plan import CompileMode

UNPROVEN_MARGIN = 0.01
PROVEN_AFTER = 3


@dataclass(slots=True)
class _Errors:
    """Measured over predicted peaks.

    Attributes:
        count: of plans that ran to their end.
        lowest: of those; 1 without any.
        is_exact: whether all of those were 1.
        highest: of all plans.
    """

    count: int = 0
    lowest: float = 1.0
    is_exact: bool = True
    highest: float = 0.0

    @property
    def is_proven(self) -> bool:
        return self.count >= PROVEN_AFTER


class PeakMargins:
    """Two margins around the budget: what is not run since it cannot fit, and what is aimed at so that it does."""

    def __init__(self) -> None:
        self._of_mode: dict[CompileMode, _Errors] = {}

    def learn(self, compile: CompileMode, predicted_bytes: int, measured_bytes: int, *, whole: bool) -> None:
        """Notes a measured plan.

        Args:
            whole: whether it ran to its end; one that was stopped over the budget has at least that peak.
        """
        errors = self._of_mode.setdefault(compile, _Errors())
        ratio = measured_bytes / predicted_bytes
        if whole:
            errors.lowest = ratio if errors.count == 0 else min(errors.lowest, ratio)
            errors.is_exact = errors.is_exact and ratio == 1.0
            errors.count += 1
        errors.highest = max(errors.highest, ratio)

    def is_exact(self, compile: CompileMode) -> bool:
        """Whether no plan of this mode that ran to its end had another peak than predicted."""
        return self._of_mode.get(compile, _Errors()).is_exact

    def too_high_by(self, compile: CompileMode) -> float:
        """By what share a predicted peak may be over the budget before the plan is not run.

        It is the most that a prediction of this mode was too high; as long as few plans were measured, not less than
        one percent.
        """
        errors = self._of_mode.get(compile, _Errors())
        worst = max(0.0, 1 / errors.lowest - 1)
        return worst if errors.is_proven else max(worst, UNPROVEN_MARGIN)

    def aim_bytes(self, compile: CompileMode, budget_bytes: int) -> int:
        """The predicted peak that keeps the measured one within the budget, if the worst error so far happens again.

        Where all predictions were too high it is above the budget; as long as few plans were measured, it never is.
        """
        errors = self._of_mode.get(compile, _Errors())
        return int(budget_bytes / (errors.highest if errors.is_proven else max(1.0, errors.highest)))
