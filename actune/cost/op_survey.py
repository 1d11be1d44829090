"""Which plan layers are traced under: none, or full on all that are not traced where none does not fit."""

from __future__ import annotations

from collections.abc import Callable

from actune.errors import DeviceMemoryError
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, dump_plan
from actune.records import ModelStructure

Run = Callable[[TraceLayers], LayersTraced]


def trace_classes(structure: ModelStructure, run: Run, *, batches: int = 3) -> LayersTraced:
    """The op traces of a typical layer of each class.

    Args:
        structure: the target's layers.
        run: traces layers of the target.
        batches: how many of the target's batches are traced.

    Raises:
        DeviceMemoryError: the device has no room for the traced layers without AC even if all others are recomputed.
    """
    fqns = tuple(layer_class.typical_fqn for layer_class in structure.classes)
    try:
        return run(TraceLayers(_toml(Plan()), fqns, batches))
    except DeviceMemoryError:
        others = [fqn for fqn in structure.layer_fqns if fqn not in fqns]
        if not others:
            raise
        return run(TraceLayers(_toml(Plan.from_treatments(dict.fromkeys(others, Treatment("full")))), fqns, batches))


def _toml(plan: Plan) -> str:
    return dump_plan(plan, with_provenance=False)
