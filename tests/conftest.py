from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> None:
    """Live bytes are counted over all objects that Python knows: not over those of libraries and earlier tests."""
    gc.collect()
    gc.freeze()
