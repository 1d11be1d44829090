"""actune finds the best activation-checkpointing plan for a PyTorch model under a memory budget, by measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actune.ac import apply_plan, remove_plan
    from actune.plan import Plan, load_plan
    from actune.targets import Target

__version__ = "0.1.0"

__all__ = ["Plan", "Target", "__version__", "apply_plan", "load_plan", "remove_plan"]

_HOMES = {
    "Plan": "actune.plan",
    "load_plan": "actune.plan",
    "apply_plan": "actune.ac",
    "remove_plan": "actune.ac",
    "Target": "actune.targets",
}


def __getattr__(name: str) -> Any:
    # Lazy: the command line imports this package first, and must neither wait for torch nor open a CUDA context.
    if name not in _HOMES:
        raise AttributeError(f"module 'actune' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
