"""What a search remembers: studies, trials, predictions, verdicts and more, in one database beside Optuna's own tables.

The one home of SQLAlchemy, alembic and filelock. Optuna is told of the database by `Store.url`; its home is the search.
"""

from __future__ import annotations

from actune.store.backup import back_up
from actune.store.copying import CopiedStudy, copy_study
from actune.store.lock import setup_lock, study_lock
from actune.store.names import validate_study_name
from actune.store.plan_texts import stored_plan
from actune.store.store import Store, environment_fingerprint
from actune.store.summary import StudySummary

__all__ = [
    "CopiedStudy",
    "Store",
    "StudySummary",
    "back_up",
    "copy_study",
    "environment_fingerprint",
    "setup_lock",
    "stored_plan",
    "study_lock",
    "validate_study_name",
]
