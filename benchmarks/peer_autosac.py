"""PyTorch's AutoSAC (`torch.distributed._tools`), with measured times, and what it decides as a plan.

Its own parts: what modules hold (`MemTracker`), which ops of a module to recompute first (`SACEstimator`'s greedy
order), how much each layer discards (`sac_milp`), and which op outputs a layer then keeps
(`get_optimal_checkpointing_policy_per_module`). Not its own, because PyTorch's don't run here:

- times: `RuntimeEstimator` needs CUDA. Each op is timed as it runs, on the thread's own clock;
- `aggregate_stats`, which asks for `RuntimeEstimator` and fails on a module that no gradient passes through;
- the two lines that are fitted to a module's trade-off curve, which need the package pwlf. The curve is convex but for
  its ends, so the lines through its lower hull are the curve itself.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass

import torch
from torch.distributed._tools import sac_ilp
from torch.distributed._tools.ilp_utils import Graph, parse_module_info
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _ModState
from torch.distributed._tools.sac_estimator import SACEstimator, SACGreedyOrderMeta, SACStats
from torch.distributed._tools.sac_ilp import get_optimal_checkpointing_policy_per_module, sac_milp
from torch.utils._python_dispatch import TorchDispatchMode

from actune.cost.derive import savable_ops
from actune.errors import CostError
from actune.op_trace import LayersTraced, LayerTrace
from actune.plan import Plan, SavedOp, Treatment
from actune.targets import load_target

TIMED_FORWARDS = 5
MS_PER_NS = 1e-6
CPU = torch.device("cpu")

sac_ilp.logger.setLevel(logging.CRITICAL)  # that nothing is found within a budget is an answer here


class TimedEstimator(SACEstimator):
    """`SACEstimator` on real tensors: each op is run and timed, where PyTorch's would ask a model of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[str] = []
        self.after: list[str] = []
        self._outputs: list[object] = []
        self._estimate_runtime = self._run

    def _run(self, op, args, kwargs):
        start_ns = time.thread_time_ns()
        output = op(*args, **(kwargs or {}))
        time_ms = (time.thread_time_ns() - start_ns) * MS_PER_NS
        self._outputs.append(output)  # storages are told apart by their addresses, so none may be used again
        return output, time_ms

    def _pre_fw_hook(self, module, inputs):
        self.before.append(self._mod_tracker.get_known_fqn(module))
        super()._pre_fw_hook(module, inputs)

    def _post_fw_hook(self, module, inputs, outputs):
        self.after.append(self._mod_tracker.get_known_fqn(module))
        super()._post_fw_hook(module, inputs, outputs)

    def __enter__(self):
        # As PyTorch's, without asking for fake tensors.
        self._mod_tracker.register_user_hooks(pre_fw_hook=self._pre_fw_hook, post_fw_hook=self._post_fw_hook)
        self._mod_tracker.__enter__()
        self._saved_tensor_hook_ctx.__enter__()
        return TorchDispatchMode.__enter__(self)


@dataclass(frozen=True)
class AutoSac:
    """What AutoSAC knows of a target.

    Attributes:
        graph: its modules, for `sac_milp`.
        stats: the ops of each layer, by the layer's name in the graph.
        names: for each of those ops, how a plan names its output; None where a plan can't keep it.
        fqns: of the layers, by their names in the graph, which begin with the model's class.
    """

    graph: Graph
    stats: dict[str, SACStats]
    names: dict[str, tuple[str | None, ...]]
    fqns: dict[str, str]

    @classmethod
    def of(cls, target_text: str, traced: LayersTraced, *, seed: int = 0) -> AutoSac:
        """Runs the target for a few steps, in this process.

        Args:
            target_text: as on the command line.
            traced: op traces of all its layers, which know the ops by the names that plans have for them.
            seed: of its parameters.

        Raises:
            CostError: AutoSAC sees other ops in a layer than its trace has.
        """
        target = load_target(target_text)
        torch.manual_seed(seed)
        model = target.model()
        optimizer = target.optimizer(model)
        target.loss(model, target.batch(0)).backward()
        optimizer.step()  # its state is there in all steps but the first
        model.zero_grad(set_to_none=True)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            target.loss(model, target.batch(0)).backward()
        model.zero_grad(set_to_none=True)
        runs = []
        for _ in range(1 + TIMED_FORWARDS):
            estimator = TimedEstimator()
            with estimator:
                target.loss(model, target.batch(0))
            runs.append(estimator)
        stats = {}
        for fqn, of_module in runs[-1].sac_mod_stats.items():
            times_ms = zip(*(run.sac_mod_stats[fqn].runtimes for run in runs[1:]), strict=True)
            of_module.runtimes = [statistics.median(of_op) for of_op in times_ms]
            stats[fqn] = of_module
        root = runs[-1].before[0]
        traces = {f"{root}.{trace.layer_fqn}": trace for trace in traced.layers}
        fqns = {name: trace.layer_fqn for name, trace in traces.items()}
        names = {name: names_of(stats[name], trace) for name, trace in traces.items()}
        return cls(_graph(tracker, stats, runs[-1]), {name: stats[name] for name in fqns}, names, fqns)

    def plan(self, budget_bytes: int) -> Plan | None:
        """What it decides within its budget, None if it finds nothing that fits.

        It may choose among the layers, as whole units: what to keep inside of one is chosen op by op.
        """
        decisions, _, peak_bytes = sac_milp(self.graph, budget_bytes / 2**30, ac_units=list(self.fqns))
        if peak_bytes < 0:
            return None
        treatments = {}
        for name, discarded in decisions.items():
            share = min(1.0, max(0.0, 1 - discarded))
            kept = get_optimal_checkpointing_policy_per_module(self.stats[name], share)
            if not kept:
                return None
            save = [n for n, is_kept in zip(self.names[name], kept, strict=True) if is_kept and n is not None]
            treatment = Treatment("selective", save_every_nth_mm=0, save_ops=(), save=tuple(save))
            # Keeping nothing is full AC, without what SAC costs.
            treatments[self.fqns[name]] = treatment.canonical() if save else Treatment("full")
        return Plan.from_treatments({fqn: treatments[fqn] for fqn in self.fqns.values() if fqn in treatments})


def names_of(stats: SACStats, trace: LayerTrace) -> tuple[str | None, ...]:
    """How a plan names the output of each op that AutoSAC sees in a layer: the n-th of a name is the trace's n-th.

    Raises:
        CostError: the trace has another number of ops of a name.
    """
    can_be_kept = {op.name for op in savable_ops(trace)}
    counts = Counter((op.module_fqn, op.op_name) for op in trace.forward if op.occurrence)
    varying = {op.module_fqn for op in trace.forward if op.varies}
    queues: dict[str, deque[str | None]] = defaultdict(deque)
    for op in trace.forward:
        name = None
        if op.occurrence:
            together = op.module_fqn in varying or counts[op.module_fqn, op.op_name] == 1
            name = str(SavedOp(op.module_fqn, op.op_name, None if together else op.occurrence))
        queues[op.op_name.rpartition(".")[2]].append(name if name in can_be_kept else None)
    for op_name, count in Counter(stats.func_names).items():
        if len(queues[op_name]) != count:
            raise CostError(
                f"AutoSAC sees {count} × {op_name} in {trace.layer_fqn}, its trace has {len(queues[op_name])}"
            )
    return tuple(queues[op_name].popleft() for op_name in stats.func_names)


def _graph(tracker: MemTracker, stats: dict[str, SACStats], estimator: TimedEstimator) -> Graph:
    """As `aggregate_stats`, for the modules that have a backward."""
    nodes = {}
    for of_module in tracker.memory_tracking.values():
        if _ModState.PRE_BW not in of_module.snapshots:
            continue
        fqn = of_module.mod_fqn

        def held(state: _ModState, kind: _MemRefType, snapshots=of_module.snapshots) -> int:
            return snapshots[state][-1][CPU][kind]

        before_bytes, after_bytes = held(_ModState.PRE_FW, _MemRefType.ACT), held(_ModState.POST_FW, _MemRefType.ACT)
        temporary_bytes = held(_ModState.PEAK_BW, _MemRefType.TEMP) - held(_ModState.PRE_BW, _MemRefType.TEMP)
        slopes, intercepts = lines_of(stats[fqn], estimator) if fqn in stats else ((), ())
        nodes[fqn] = {
            "fqn": fqn,
            "param_per_module": of_module.parameter_mem,
            "grad_per_module": of_module.parameter_mem,
            "grad_total": held(_ModState.PRE_BW, _MemRefType.GRAD),
            "act_fw_per_module": max(0, after_bytes - before_bytes - of_module.output_mem),
            "act_bw_per_module": max(0, held(_ModState.PEAK_BW, _MemRefType.ACT)),
            "act_grad_per_module": temporary_bytes,
            "act_total": after_bytes,
            "input_per_module": of_module.input_mem,
            "output_per_module": of_module.output_mem,
            "fw_runtime_per_module": 0.0,  # of no interest to sac_milp, as are those of the backward
            "bw_runtime_per_module": 0.0,
            "is_leaf": fqn not in stats,
            "sac_runtime": sum(stats[fqn].runtimes) if fqn in stats else 0.0,
            "sac_memory": sum(stats[fqn].memory) if fqn in stats else 0,
            "n_segments": len(slopes),
            "slopes": slopes,
            "intercepts": intercepts,
            "breakpoints": [],
            "tradeoff_curve": {},
        }
    before = [fqn for fqn in dict.fromkeys(estimator.before) if fqn in nodes]
    after = [fqn for fqn in dict.fromkeys(estimator.after) if fqn in nodes]
    order = {"fw_pre_order": before, "fw_post_order": after, "bw_pre_order": after[::-1], "bw_post_order": before[::-1]}
    return parse_module_info({"mod_order": order, "mod_stats": [nodes[fqn] for fqn in before]})


def lines_of(stats: SACStats, estimator: SACEstimator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Slopes and intercepts of the lower hull of the share of time recomputed over the share of bytes discarded."""
    order = estimator._get_greedy_order_meta(stats)
    total_bytes, total_ms = sum(stats.memory), sum(stats.runtimes)
    curve = [(size / total_bytes, time_ms / total_ms) for size, time_ms in _discarding(stats, order)]
    hull: list[tuple[float, float]] = []
    for x, y in [*sorted(curve), (1.0, 1.0)]:
        if hull and x <= hull[-1][0]:
            continue  # more time for no more bytes
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    slopes = tuple(_slope(left, right) for left, right in itertools.pairwise(hull))
    return slopes, tuple(y - slope * x for slope, (x, y) in zip(slopes, hull[:-1], strict=True))


def _discarding(stats: SACStats, order: SACGreedyOrderMeta):
    """Bytes discarded and milliseconds to recompute them, as ops are discarded in AutoSAC's order."""
    size = sum(stats.memory[op] for op in order.recomputed_ops)
    time_ms = sum(stats.runtimes[op] for op in order.recomputed_ops)
    yield size, time_ms
    for candidate in order.msps_meta:
        size, time_ms = size + candidate.memory, time_ms + candidate.runtime
        yield size, time_ms


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
