from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
HOW = "needs a CUDA card: run `pytest tests/gpu` on a machine that has one"

if torch.cuda.is_available() and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    # Before anything is allocated, as the engine sets it for workers: these tests open the card in this process.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if FOLDER in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=HOW))
