"""Op traces as documents: where the bytes and the time of a layer go, op by op and module by module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from actune.op_trace import LayerTrace, OpRecord, total_time_s
from actune.plan import WHOLE_LAYER
from actune.records import ModelStructure


def layer_class_entry(trace: LayerTrace, structure: ModelStructure, *, sac_op_time_s: float) -> dict[str, Any]:
    """What one layer of a class costs: in all, by preset, by module, and by op."""
    layers = next(layers for layers in structure.classes if layers.name == trace.class_name)
    return {
        "layer_class": trace.class_name,
        "layers": list(layers.layer_fqns),
        "traced_layer": trace.layer_fqn,
        "batches": trace.batches,
        "parameter_bytes": trace.parameter_bytes,
        "input_bytes": trace.input_bytes,
        "spread": None if trace.spread is None else asdict(trace.spread),
        "presets": _preset_entries(trace, sac_op_time_s),
        "modules": _module_entries(trace),
        "ops": [_op_entry(op) for op in trace.ops],
    }


def _preset_entries(trace: LayerTrace, sac_op_time_s: float) -> list[dict[str, Any]]:
    """Of the presets that treat the layer whole."""
    kept = [op for op in trace.forward if op.kept_by_sac]
    kept_bytes = sum(
        output.storage_bytes
        for op in kept
        for output in op.outputs
        if output.is_new and output.storage not in trace.output_storages
    )
    saved_s = total_time_s(op for op in trace.forward[: trace.recomputed_ops] if op.kept_by_sac)
    sac_s = trace.recompute_time_s - saved_s + sac_op_time_s * trace.recomputed_ops
    return [
        {"plan": "none", "kept_bytes": trace.kept_bytes, "recompute_time_s": 0.0},
        {"plan": "full", "kept_bytes": 0, "recompute_time_s": trace.recompute_time_s},
        {"plan": "sac", "kept_bytes": kept_bytes, "recompute_time_s": sac_s},
    ]


def _module_entries(trace: LayerTrace) -> list[dict[str, Any]]:
    """Each module with all that runs in it and below it, after the one that it lies in; first the layer itself."""
    first_met: dict[str, int] = {WHOLE_LAYER: 0}
    for op in trace.ops:
        for outer in _with_outer_ones(op.module_fqn):
            first_met.setdefault(outer, len(first_met))
    tree = sorted(first_met, key=lambda fqn: [first_met[outer] for outer in _with_outer_ones(fqn)])
    return [_module_entry(fqn, [op for op in trace.ops if _lies_in(op.module_fqn, fqn)]) for fqn in tree]


def _with_outer_ones(fqn: str) -> list[str]:
    """The modules that it lies in, the outermost first, and itself."""
    parts = [] if fqn == WHOLE_LAYER else fqn.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _lies_in(fqn: str, outer: str) -> bool:
    return outer in (WHOLE_LAYER, fqn) or fqn.startswith(f"{outer}.")


def _module_entry(fqn: str, ops: list[OpRecord]) -> dict[str, Any]:
    forward, backward = ([op for op in ops if op.phase == phase] for phase in ("forward", "backward"))
    return {
        "module": fqn,
        "forward_time_s": total_time_s(forward),
        "backward_time_s": total_time_s(backward),
        "forward_flops": _flops(forward),
        "backward_flops": _flops(backward),
        "output_bytes": sum(op.new_bytes for op in forward),
        "kept_bytes": sum(op.kept_bytes for op in forward),
        "kept_by_sac_bytes": sum(op.new_bytes for op in forward if op.kept_by_sac),
    }


def _flops(ops: Iterable[OpRecord]) -> int:
    return sum(op.flops or 0 for op in ops)


def _op_entry(op: OpRecord) -> dict[str, Any]:
    return {
        "phase": op.phase,
        "module": op.module_fqn,
        "op": op.op_name,
        "occurrence": op.occurrence or None,
        "time_s": op.time_s,
        "flops": op.flops,
        "output_bytes": op.new_bytes,
        "kept_bytes": op.kept_bytes,
        "kept_by_sac": op.kept_by_sac,
        "writes_in_place": bool(op.writes),
        "random": op.random,
        "chooses": op.chooses,
        "depends_on_batch": op.varies,
    }
