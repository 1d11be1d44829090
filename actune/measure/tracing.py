"""Tracing layers: a few steps whose ops are recorded in one layer of each class."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actune.errors import PlanError, TargetError
from actune.measure.marks import LayerMarks
from actune.measure.op_recorder import LayerRecording, OpRecorder
from actune.measure.sac_cost import sac_op_time_s
from actune.measure.workload import Workload
from actune.op_trace import LayersTraced, LayerTrace, OpRecord, TraceLayers, TraceSpread, total_time_s
from actune.plan import NO_AC, Plan, parse_plan


def trace_layers(workload: Workload, request: TraceLayers) -> LayersTraced:
    """Runs steps under a plan and says what the layers asked for do in them, op by op.

    Where none are named, one of each class is traced; a class whose layer no step calls, as a vision tower's of a model
    that is trained on text, is left out.

    Raises:
        PlanError: the plan does not fit the model, or gives a layer to trace some AC, or compiles.
        TargetError: a layer to trace is not called in a step.
        torch.OutOfMemoryError: the plan needs more than the device has.
    """
    plan = parse_plan(request.plan_toml)
    fqns = request.layer_fqns or tuple(layer_class.typical_fqn for layer_class in workload.structure.classes)
    _check(plan, fqns, workload)
    workload.restart()
    try:
        with workload.device.without_limit():
            workload.warm_up(plan)
            if workload.device.computes:
                _run_once(workload, plan)
            # Without values all batches are alike, and a simulated clock tells the same of each.
            batches = request.batches if workload.device.computes else 1
            steps = [_traced_step(workload, plan, fqns, step) for step in range(batches)]
        if not request.layer_fqns:
            fqns = tuple(fqn for fqn in fqns if any(fqn in step for step in steps))
        for number, step in enumerate(steps):
            for fqn in fqns:
                if fqn not in step:
                    raise TargetError(
                        f"layer '{fqn}' is not called in step {number}, so there is nothing to trace in it."
                    )
        traces = tuple(_combined(workload, fqn, [step[fqn] for step in steps]) for fqn in fqns)
        return LayersTraced(traces, sac_op_time_s(workload, traces) if workload.device.computes else 0.0)
    finally:
        workload.forget_plans()
        workload.restart()


def _check(plan: Plan, fqns: Sequence[str], workload: Workload) -> None:
    if plan.compile != "off":
        raise PlanError(f"compile: '{plan.compile}' hides the ops of layers. Trace them with compile = \"off\".")
    treatments = plan.resolve(workload.structure.layer_fqns)
    for fqn in fqns:
        if fqn not in treatments:
            layers = ", ".join(workload.structure.layer_fqns)
            raise PlanError(f"layer_fqns: '{fqn}' is no layer of this model. Its layers are: {layers}.")
        if treatments[fqn] != NO_AC:
            raise PlanError(f"layer '{fqn}' gets {treatments[fqn].label()}, but is traced without AC. Give it none.")


@dataclass(frozen=True)
class _Run:
    """One layer in one step."""

    recording: LayerRecording
    ops: tuple[OpRecord, ...]

    @property
    def kept_bytes(self) -> int:
        return sum(op.kept_bytes for op in self.ops)

    def time_s(self, phase: str) -> float:
        return total_time_s(op for op in self.ops if op.phase == phase)


def _traced_step(workload: Workload, plan: Plan, fqns: Sequence[str], step: int) -> dict[str, _Run]:
    workload.clear_gradients()
    workload.fetch_batch(step)
    timer = workload.device.step_timer()
    marks = LayerMarks(_no_reading)
    layers = {fqn: workload.model.get_submodule(fqn) for fqn in fqns}
    with (
        workload.under(plan),
        marks.at_layers(workload.model, workload.structure.layer_fqns),
        OpRecorder(layers, lambda: marks.marks[-1], timer) as recorder,
    ):
        workload.forward_backward(step)
    stretches_s = timer.stretches_s
    return {
        fqn: _Run(recording, recording.records(stretches_s))
        for fqn, recording in recorder.recordings.items()
        if recording.call is not None
    }


def _run_once(workload: Workload, plan: Plan) -> None:
    """A first step maps memory, and its ops would take the longer for it."""
    with workload.under(plan):
        workload.forward_backward(0)


def _no_reading() -> None:
    """The ops' own timer is read at each op, and not at the layers' marks."""


def _combined(workload: Workload, fqn: str, runs: list[_Run]) -> LayerTrace:
    chosen = max(runs, key=lambda run: run.kept_bytes)
    spread = None
    if all(_signature(run) == _signature(chosen) for run in runs):
        times_s = zip(*([op.time_s for op in run.ops] for run in runs), strict=True)
        ops = tuple(replace(op, time_s=statistics.median(of_op)) for op, of_op in zip(chosen.ops, times_s, strict=True))
    else:
        ops = _with_what_varies(chosen, runs)
        spread = _spread(runs)
    module = chosen.recording.module
    return LayerTrace(
        class_name=next(layers.name for layers in workload.structure.classes if fqn in layers.layer_fqns),
        layer_fqn=fqn,
        ops=ops,
        recomputed_ops=chosen.recording.recomputed_ops,
        input_bytes=chosen.recording.input_bytes,
        output_storages=chosen.recording.output_storages,
        parameter_bytes=sum(parameter.nbytes for parameter in module.parameters()),
        batches=len(runs),
        spread=spread,
    )


def _signature(run: _Run) -> list[OpRecord]:
    """All but the times."""
    return [replace(op, time_s=0.0) for op in run.ops]


def _with_what_varies(chosen: _Run, runs: list[_Run]) -> tuple[OpRecord, ...]:
    """The ops of one run, those marked whose number or sizes in their module differ from another run's."""
    of_runs = [_sizes_by_name(run) for run in runs]
    ops = []
    for op in chosen.ops:
        found = {of_run[_name(op)] for of_run in of_runs}
        ops.append(replace(op, varies=len(found) > 1, optional=() in found))
    return tuple(ops)


def _name(op: OpRecord) -> tuple[str, str, str]:
    return op.phase, op.module_fqn, op.op_name


def _sizes_by_name(run: _Run) -> defaultdict[tuple[str, str, str], tuple[int, ...]]:
    """Bytes of the outputs of each op of a name in a module, in their order; empty for what did not run."""
    sizes: defaultdict[tuple[str, str, str], tuple[int, ...]] = defaultdict(tuple)
    for op in run.ops:
        sizes[_name(op)] += (sum(output.storage_bytes for output in op.outputs),)
    return sizes


def _spread(runs: list[_Run]) -> TraceSpread:
    kept_bytes = [run.kept_bytes for run in runs]
    forward_s, backward_s = ([run.time_s(phase) for run in runs] for phase in ("forward", "backward"))
    names = [list(map(_name, run.ops)) for run in runs]
    return TraceSpread(
        same_ops=all(of_run == names[0] for of_run in names),
        kept_bytes=(min(kept_bytes), max(kept_bytes)),
        forward_time_s=(min(forward_s), max(forward_s)),
        backward_time_s=(min(backward_s), max(backward_s)),
    )
