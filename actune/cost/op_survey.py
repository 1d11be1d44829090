"""Which plan layers are traced under: none, or full on all that are not traced where none does not fit."""

from __future__ import annotations

from collections.abc import Callable

from actune.errors import DeviceMemoryError
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, dump_plan
from actune.records import ModelStructure

Run = Callable[[TraceLayers], LayersTraced]


def trace_classes(structure: ModelStructure, run: Run, *, batches: int = 3) -> LayersTraced:
    """The op traces of a typical layer of each class that is called.

    Args:
        structure: the target's layers.
        run: traces layers of the target.
        batches: how many of the target's batches are traced.

    Raises:
        DeviceMemoryError: the device has no room for the traced layers without AC even if all others are recomputed.
    """
    typical = {layer_class.typical_fqn for layer_class in structure.classes}
    try:
        return run(TraceLayers(_toml(Plan()), batches=batches))
    except DeviceMemoryError:
        others = [fqn for fqn in structure.layer_fqns if fqn not in typical]
        if not others:
            raise
        plan = Plan.from_treatments(dict.fromkeys(others, Treatment("full")))
        return run(TraceLayers(_toml(plan), batches=batches))


def _toml(plan: Plan) -> str:
    return dump_plan(plan, with_provenance=False)
