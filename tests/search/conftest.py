from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from actune.search.space import ModelSpace
from actune.search.study import PlanStudy
from actune.store import Store

from .fakes import Machine, dense, space_of


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With actune's tables and Optuna's, which take a second to make."""
    path = tmp_path_factory.mktemp("database") / "actune.db"
    with Store.open(f"sqlite:///{path}", create=True) as store:
        space = ModelSpace(space_of("schema: 1\npresets: []\nmenu: [policy: none]"), dense(1))
        PlanStudy(store, "another", space, sampler="random", seed=0).close()
    return path


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Iterator[Store]:
    shutil.copy(empty_database, tmp_path / "actune.db")
    with Store.open(f"sqlite:///{tmp_path}/actune.db", create=True) as store:
        yield store


@pytest.fixture
def machine() -> Machine:
    return Machine()
