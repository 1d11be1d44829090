"""Reports read the store, and nothing else."""

from actune.report.documents import outcome_under, plan_entry, studies_document, study_document

__all__ = ["outcome_under", "plan_entry", "studies_document", "study_document"]
