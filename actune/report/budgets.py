"""A study's budgets by the names that its user gave them."""

from __future__ import annotations

from actune.study_records import StudyRecord
from actune.units import Budget


def named_budgets(study: StudyRecord) -> dict[str, int]:
    """The study's budgets as they were written, with their sizes in bytes; none as long as the sizes are not known.

    Of a frontier only the largest was written. A share has no name either if it comes to the very size of another
    budget, since a study keeps each size once.
    """
    sizes = study.budgets_bytes or ()
    if not sizes:
        return {}
    budgets = Budget.parse_all(study.settings.budget)
    if study.settings.frontier:
        return {budgets[0].text: sizes[0]}
    named = {budget.text: budget.absolute_bytes for budget in budgets if budget.absolute_bytes is not None}
    # Shares are of one peak, so they have the order of their sizes.
    left = [size for size in sizes if size not in named.values()]
    shares = sorted({b.fraction_of_no_ac for b in budgets if b.fraction_of_no_ac is not None}, reverse=True)
    if len(left) == len(shares):
        size_of = dict(zip(shares, left, strict=True))
        named |= {b.text: size_of[b.fraction_of_no_ac] for b in budgets if b.fraction_of_no_ac is not None}
    return named
