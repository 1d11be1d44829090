"""Documents for commands: from the store, and from what a worker has just found."""

from actune.report.budgets import named_budgets
from actune.report.compiled import compile_warnings, compiled_part, short_fqns
from actune.report.documents import outcome_under, plan_entry, studies_document, study_document
from actune.report.frontier import frontier_points, study_frontier_document
from actune.report.op_profile import layer_class_entry

__all__ = [
    "compile_warnings",
    "compiled_part",
    "frontier_points",
    "layer_class_entry",
    "named_budgets",
    "outcome_under",
    "plan_entry",
    "short_fqns",
    "studies_document",
    "study_document",
    "study_frontier_document",
]
