"""What the search's benchmarks start studies with: settings, and a database of its own for each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna

from actune.store import Store
from actune.study_records import StudySettings

# As the command line has them.
TIMED_PAIRS = 5
VERDICT_ROUNDS = 9
TRIAL_TIMEOUT_S = 600.0


def settings_for(
    target: str, device: str, *, budget: str, space: str, space_yaml: str, trials: int, sampler: str, seed: int
) -> StudySettings:
    """Of a study with one worker and no timeout."""
    return StudySettings(
        target=target,
        budget=budget,
        device=device,
        space=space,
        space_yaml=space_yaml,
        trials=trials,
        sampler=sampler,
        seed=seed,
        workers=1,
        timeout_s=None,
        trial_timeout_s=TRIAL_TIMEOUT_S,
        timed_pairs=TIMED_PAIRS,
        verdict_rounds=VERDICT_ROUNDS,
    )


def empty_database(folder: Path) -> Path:
    """A database with actune's tables and Optuna's, which are made once for all studies of a user too."""
    path = folder / "empty.db"
    with Store.open(f"sqlite:///{path}", create=True) as store:
        optuna.storages.RDBStorage(store.url, engine_kwargs=store.optuna_engine_kwargs).engine.dispose()
    return path


@contextmanager
def study_store(database: Path) -> Iterator[tuple[Store, Path]]:
    """A copy of the database, open, so that no study reuses another one's trials; and the folder that it is in."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shutil.copy(database, folder / "actune.db")
        with Store.open(f"sqlite:///{folder}/actune.db", create=True) as store:
            yield store, folder
