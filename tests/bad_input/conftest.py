from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

# The benchmark of bad input and these tests make their inputs in the same way.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

# It keeps tables there even without a database of examples.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "actune-hypothesis")

settings.register_profile(
    "bad-input",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("bad-input")
