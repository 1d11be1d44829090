from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> Iterator[None]:
    """Live bytes are counted over all objects that Python knows, which elsewhere are many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
