"""What SAC itself costs for each op: it looks at every op of a region, in forward and again in recomputation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from actune.measure.workload import Workload
from actune.op_trace import LayerTrace
from actune.plan import Plan, Treatment

_ROUNDS = 3


def sac_op_time_s(workload: Workload, traces: Sequence[LayerTrace]) -> float:
    """Seconds that SAC adds to a step for each op of a region, over full AC.

    From steps with all layers recomputed, with SAC that keeps nothing and without it, side by side on the device's own
    clock. It is the target's own layers that tell, and not a few small ops in a loop: those stay in the processor's
    caches, and on a card nothing else would run meanwhile.

    Args:
        traces: of a layer of each class; each says how many ops the others of its class have.
    """
    ops_of_class = {trace.class_name: trace.recomputed_ops for trace in traces}
    classes = [layers for layers in workload.structure.classes if layers.name in ops_of_class]
    ops = sum(ops_of_class[layers.name] * len(layers.layer_fqns) for layers in classes)
    fqns = [fqn for layers in classes for fqn in layers.layer_fqns]
    full, nothing_kept = (
        Plan.from_treatments(dict.fromkeys(fqns, treatment))
        for treatment in (Treatment("full"), Treatment("selective", save_every_nth_mm=0, save_ops=()))
    )
    differences_s = []
    for step in range(1 + _ROUNDS):
        workload.fetch_batch(step)
        full_s, selective_s = (_step_time_s(workload, plan, step) for plan in (full, nothing_kept))
        differences_s.append(selective_s - full_s)
    return max(0.0, statistics.median(differences_s[1:])) / max(1, ops)


def _step_time_s(workload: Workload, plan: Plan, step: int) -> float:
    workload.clear_gradients()
    with workload.under(plan), workload.device.step_timer() as timer:
        workload.forward_backward(step)
    return sum(timer.stretches_s)
