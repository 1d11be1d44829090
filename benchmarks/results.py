"""Keeps what a benchmark printed, with the environment that it ran in."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
LIBRARIES = ("actune", "torch", "numpy", "scipy", "transformers")


def save(name, document):
    """Writes results/NAME.json."""
    environment = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or 1),
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"environment": environment, **document}, indent=2)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def processor_name():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
