"""A target whose steps take a while, and say when they began and ended."""

import json
import os
import time
from pathlib import Path

import torch
from torch import nn


class LoggingSteps:
    def model(self):
        return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3)))

    def batch(self, step):
        return torch.randn(4, 8, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch):
        begin_s = time.monotonic()
        folder = os.environ.get("ACTUNE_TEST_STEPS")
        if folder is not None:
            log = Path(folder) / str(os.getpid())
            if not log.exists():
                log.touch()
                self.wait_for_all(log.parent)
            loss = model(batch).square().mean()
            with log.open("a") as lines:
                lines.write(json.dumps([begin_s, time.monotonic()]) + "\n")
            return loss
        return model(batch).square().mean()

    def wait_for_all(self, folder):
        """Until each worker has begun its first step."""
        end_s = time.monotonic() + 60
        while len(list(folder.iterdir())) < int(os.environ["ACTUNE_TEST_WORKERS"]):
            assert time.monotonic() < end_s, "the others have not begun a step while this one runs"
            time.sleep(0.01)
