"""Copies of studies, Optuna's part included."""

from __future__ import annotations

from actune.search.study import open_optuna_storage
from actune.store import CopiedStudy, Store, copy_study, validate_study_name
from actune.store.copying import is_known_to_optuna, name_is_taken


def copy_whole_study(source: Store, name: str, destination: Store, new_name: str) -> CopiedStudy:
    """Copies a study so that `resume` goes on with the copy as it would with the study itself.

    Args:
        source: where it is. A search may be at work on it: the copy is of one moment.
        name: the study's.
        destination: where it goes to.
        new_name: the copy's.

    Raises:
        UsageError: there is no such study, or one of the new name, or the new name is none that a study may have.
        StorageError: one of the databases can't be used.
        ActuneError: a search of the new name is about to start.
    """
    validate_study_name(new_name)
    source.study(name)  # before anything is made at the destination
    if destination.has_study(new_name):
        raise name_is_taken(new_name, destination.label)
    if is_known_to_optuna(source):
        storage = open_optuna_storage(destination)  # which makes Optuna's tables
        storage.remove_session()
        storage.engine.dispose()
    with destination.locked(new_name):
        return copy_study(source, name, destination, new_name)
