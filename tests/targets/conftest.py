from __future__ import annotations

import sys
from pathlib import Path

# The architectures are those of a benchmark, whose scripts import each other from beside themselves.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
