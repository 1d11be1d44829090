"""Derived save sets: what can be kept, by which name, and that what is predicted of it is what is measured."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from actune.cost.derive import derived_sets, derived_treatments, savable_ops
from actune.cost.save_sets import save_set_frontier
from actune.measure import Workload, open_device, profile_plan, trace_layers
from actune.op_trace import LayersTraced, LayerTrace, OpRecord, OutputStorage, TraceLayers
from actune.plan import Plan, Treatment, dump_plan, parse_plan
from actune.step_profile import ProfilePlan
from tests.measure.targets import Plain

SPECS = ("dense-tiny?batch=1&seq=16&layers=2", "moe-tiny?batch=1&seq=16&layers=2")
NO_AC = dump_plan(Plan())
MANY = 1000


@cache
def workload_of(spec):
    return Workload(spec, open_device("cpu"), seed=0)


@cache
def traces_of(spec):
    return trace_layers(workload_of(spec), TraceLayers(NO_AC, batches=1)).layers


def everywhere(trace, treatment):
    """A plan in which the layers of the trace's class have the treatment."""
    (fqns,) = (c.layer_fqns for c in workload_of(spec_of(trace)).structure.classes if c.name == trace.class_name)
    return dump_plan(Plan.from_treatments(dict.fromkeys(fqns, treatment)))


def spec_of(trace):
    return next(spec for spec in SPECS if trace in traces_of(spec))


def keeping(*names):
    return Treatment("selective", save_every_nth_mm=0, save_ops=(), save=names)


TRACED = [
    pytest.param(spec, number, id=f"{spec.partition('?')[0]}-{number}")
    for spec, number in [(SPECS[0], 0), (SPECS[1], 1)]
]


@pytest.mark.parametrize(("spec", "number"), TRACED)
def test_every_name_is_one_that_sac_takes(spec, number):
    """Loss and gradients are those without AC, bitwise, with each output kept alone and with all of them kept."""
    trace, workload = traces_of(spec)[number], workload_of(spec)
    names = [op.name for op in savable_ops(trace)]
    assert len(set(names)) == len(names) > 25
    expected = loss_and_gradients(workload, Plan())
    for kept in [*((name,) for name in names), tuple(names)]:
        found = loss_and_gradients(workload, parse_plan(everywhere(trace, keeping(*kept))))
        assert all(map(torch.equal, found, expected)), kept


class DropoutLayer(nn.Module):
    """Two draws, one of them in place."""

    def __init__(self, width=8):
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, width)

    def forward(self, x):
        hidden = nn.functional.dropout(self.w1(x), 0.5)
        noise = torch.empty_like(hidden).uniform_()
        return x + nn.functional.dropout(self.w2(hidden * noise), 0.5)


class WithDropout(Plain):
    layer = DropoutLayer


def test_kept_draws_are_not_drawn_again():
    spec = "tests.cost.test_derive:WithDropout"
    workload, (trace,) = workload_of(spec), traces_of(spec)
    ops = savable_ops(trace)
    assert sum(op.random for op in ops) == 3
    expected = loss_and_gradients(workload, Plan())
    for number, op in enumerate(ops):
        later_draws = [later.name for later in ops[number + 1 :] if op.random and later.random]
        kept = keeping(op.name, *later_draws)
        plan = Plan.from_treatments(dict.fromkeys(workload.structure.layer_fqns, kept))
        assert all(map(torch.equal, loss_and_gradients(workload, plan), expected)), op.name


def loss_and_gradients(workload, plan):
    with workload.under(plan):
        loss = workload.forward_backward(0)
    found = [loss, *(parameter.grad for parameter in workload.model.parameters())]
    workload.clear_gradients()
    return found


def held_after_forward_bytes(trace, treatment):
    profiled = profile_plan(workload_of(spec_of(trace)), ProfilePlan(everywhere(trace, treatment), False, 0))
    return next(
        slot.delta_bytes
        for slot in profiled.steady.slots
        if slot.kind == "forward" and slot.layer_fqn == trace.layer_fqn
    )


@pytest.mark.parametrize(("spec", "number"), TRACED)
def test_kept_bytes_are_those_that_a_marked_step_measures(spec, number):
    """Over what full AC holds: the layer's output, and the random state that recomputation begins with."""
    trace = traces_of(spec)[number]
    full_bytes = held_after_forward_bytes(trace, Treatment("full", save_routing=False))
    sets = derived_sets(at_equal_times(trace), sac_op_time_s=0.0)
    assert len(sets) >= 3
    for derived in sets:
        assert held_after_forward_bytes(trace, derived.treatment) - full_bytes == derived.kept_bytes


def at_equal_times(trace):
    """The trace of a machine on which every op takes as long, so that what is derived does not depend on this one."""
    return replace(trace, ops=tuple(replace(op, time_s=1.0) for op in trace.ops))


def test_end_points_of_the_frontier():
    """Nothing kept costs the recompute time of full AC; everything kept, that of what has no storage of its own."""
    trace = at_equal_times(traces_of(SPECS[0])[0])
    ops = savable_ops(trace)
    frontier = save_set_frontier(ops, points=MANY)
    assert frontier[0].names == () or frontier[0].kept_bytes == 0
    everything = frontier[-1]
    assert sorted(everything.names) == sorted(op.name for op in ops)
    assert everything.recompute_s == 0.0
    # Each kept output saves its own op and the writes to it: the rest are views, which run again.
    runs_again = trace.recompute_time_s - sum(op.time_s for op in ops)
    views = [op for op in trace.forward[: trace.recomputed_ops] if not op.new_bytes and not op.writes]
    assert runs_again == len(views)


def test_sets_that_a_preset_beats_are_left_out():
    trace = at_equal_times(traces_of(SPECS[0])[0])
    for derived in derived_sets(trace, sac_op_time_s=0.01, points=MANY):
        assert derived.recompute_time_s < trace.recompute_time_s
        assert derived.kept_bytes < trace.kept_bytes
    assert derived_sets(trace, sac_op_time_s=100.0) == ()


def test_treatments_by_class():
    traces = tuple(map(at_equal_times, traces_of(SPECS[1])))
    treatments = derived_treatments(LayersTraced(traces, 0.0), points=4)
    assert treatments.keys() == {"TransformerBlock", "MoETransformerBlock"}
    assert all(0 < len(of_class) <= 4 for of_class in treatments.values())
    kept_in_moe = treatments["MoETransformerBlock"]
    assert all("moe.router::topk" in treatment.save for treatment in kept_in_moe)


# Made-up layers. Storage 0 is the input.


def op(name, *, reads=(0,), makes=None, writes=(), views=(), occurrence=1, size=4, **facts):
    outputs = [OutputStorage(storage, 8, False) for storage in (*views, *writes)]
    if makes is not None:
        outputs.append(OutputStorage(makes, size, True))
    known = {"kept_bytes": 0, "kept_by_sac": False, "time_s": 1.0, "flops": None}
    known |= dict.fromkeys(("random", "chooses", "varies", "optional"), False) | facts
    return OpRecord("forward", name, ".", 0 if writes else occurrence, tuple(reads), writes, tuple(outputs), **known)


def layer(*ops, recomputed_ops=None, output_storages=()):
    count = len(ops) if recomputed_ops is None else recomputed_ops
    return LayerTrace("Layer", "layers.0", ops, count, 4, output_storages, 0, 1)


def names(trace):
    return [savable.name for savable in savable_ops(trace)]


def test_views_and_what_comes_too_late_can_not_be_kept():
    trace = layer(
        op("sin", makes=1), op("view", reads=(1,), views=(1,)), op("cos", reads=(1,), makes=2), recomputed_ops=2
    )
    assert names(trace) == [".::sin"]


def test_numbers_where_a_name_is_there_twice():
    trace = layer(op("sin", makes=1), op("sin", reads=(1,), makes=2, occurrence=2), op("cos", reads=(2,), makes=3))
    assert names(trace) == [".::sin#1", ".::sin#2", ".::cos"]


def test_the_output_that_the_next_layer_holds_is_free():
    trace = layer(op("sin", makes=1), op("cos", reads=(1,), makes=2), output_storages=(2,))
    assert [savable.storage_bytes for savable in savable_ops(trace)] == [4, 0]


def test_writes_are_kept_with_what_they_write_to():
    trace = layer(op("sin", makes=1), op("add_", reads=(1,), writes=(1,)), op("cos", reads=(1,), makes=2))
    assert [(savable.name, savable.time_s) for savable in savable_ops(trace)] == [(".::sin", 2.0), (".::cos", 1.0)]


def test_what_is_read_before_it_is_written_over_can_not_be_kept():
    read, write = op("cos", reads=(1,), makes=2), op("add_", reads=(1,), writes=(1,))
    assert names(layer(op("sin", makes=1), read, write)) == [".::cos"]
    assert names(layer(op("sin", makes=1), op("view", reads=(1,), views=(1,)), write)) == [".::sin"]


def test_random_outputs_from_the_last_that_can_not_be_kept():
    """A draw into the input is never kept, so no draw before it may be."""
    dropout = op("native_dropout", makes=1, random=True)
    drawn = op("bernoulli_", reads=(0,), writes=(0,), random=True)
    later = op("native_dropout", reads=(1,), makes=2, occurrence=2, random=True)
    assert names(layer(dropout, later)) == [".::native_dropout#1", ".::native_dropout#2"]
    assert names(layer(dropout, drawn, later)) == [".::native_dropout#2"]


def test_a_draw_in_place_makes_what_it_fills_random():
    trace = layer(op("empty_like", makes=1), op("bernoulli_", reads=(1,), writes=(1,), random=True))
    (savable,) = savable_ops(trace)
    assert savable.random
    assert savable.time_s == 2.0


def test_a_late_random_op_costs_its_bytes_all_the_same():
    """Once an earlier draw is kept, SAC keeps it too, though its output is not needed again."""
    first, last = op("rand", makes=1, random=True), op("rand", makes=2, occurrence=2, random=True)
    savable = savable_ops(layer(first, last, recomputed_ops=1))
    assert [(s.storage_bytes, s.time_s) for s in savable] == [(4, 1.0), (4, 0.0)]


def test_what_depends_on_the_batch_is_kept_together():
    per_expert = [op("mm", makes=number, occurrence=number, varies=True) for number in (1, 2, 3)]
    each = [op("sin", makes=number, occurrence=number - 3) for number in (4, 5)]
    trace = layer(*per_expert, *each, op("cos", makes=6, optional=True, varies=True))
    assert [(s.name, s.storage_bytes, s.time_s) for s in savable_ops(trace)] == [(".::mm", 12, 3.0), (".::sin", 8, 2.0)]


def test_names_of_what_takes_next_to_no_time_are_left_out():
    slow = [op("sin", makes=1), op("tan", makes=2, size=40, kept_bytes=40)]
    quick = [op("cos", makes=number, occurrence=number - 2, time_s=0.004) for number in (3, 4, 5, 6)]
    trace = layer(*slow, *quick)
    assert names(trace)[2:] == [".::cos#1", ".::cos#2", ".::cos#3", ".::cos#4"]
    sets = derived_sets(trace, sac_op_time_s=0.0, points=MANY)
    assert (".::sin",) in [derived.treatment.save for derived in sets]
    assert not any("cos" in name for derived in sets for name in derived.treatment.save)
