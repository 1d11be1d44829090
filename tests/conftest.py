from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where actune keeps what the user trusts: never in the home of who runs the tests."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> None:
    """Live bytes are counted over all objects that Python knows: not over those of libraries and earlier tests."""
    gc.collect()
    gc.freeze()
