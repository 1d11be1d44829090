from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# The benchmark of bad input and these tests make their inputs in the same way.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

settings.register_profile(
    "bad-input",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("bad-input")
