"""Traces of layers against what the marks measure, and against what SAC itself counts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from actune.boundary import from_json, to_json
from actune.errors import PlanError, TargetError
from actune.measure import Workload, open_device, profile_plan, trace_layers
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import Plan, Treatment, dump_plan
from actune.step_profile import ProfilePlan
from tests.measure.targets import Model, Plain

EXAMPLES = Path(__file__).parents[2] / "examples" / "hf"
DENSE = "dense-tiny?batch=2&seq=32&layers=2"
MOE = "moe-tiny?batch=2&seq=32&layers=3"


def workload_of(spec):
    return Workload(spec, open_device("cpu"), seed=0)


def test_a_simulated_device_runs_the_same_ops(dense):
    """Fake tensors, and a clock that is the same on each run."""
    workloads = [Workload(DENSE, open_device("sim:tiny"), seed=0) for _ in range(2)]
    one, other = (trace_layers(workload, TraceLayers(dump_plan(Plan()))) for workload in workloads)
    assert one == other
    (simulated,) = one.layers
    assert [without_time(op) for op in simulated.ops] == [without_time(op) for op in dense.ops]
    assert simulated.recompute_time_s > 0


def without_time(op):
    return replace(op, time_s=0.0)


def traced(spec, plan=None, **asked):
    return trace_layers(workload_of(spec), TraceLayers(dump_plan(plan or Plan()), **asked))


@pytest.fixture(scope="module")
def dense():
    return traced(DENSE).layers[0]


@pytest.fixture(scope="module")
def moe():
    return traced(MOE).layers[1]


def held_bytes(trace):
    """What the layer made and is there at the end of its forward."""
    output_bytes = sum(
        output.storage_bytes
        for op in trace.forward
        for output in op.outputs
        if output.is_new and output.storage in trace.output_storages and not op.kept_bytes
    )
    return trace.kept_bytes + output_bytes


@pytest.mark.parametrize("spec", [DENSE, MOE, "tests.measure.targets:Plain"])
def test_what_autograd_keeps_is_what_the_marks_measure(spec):
    workload = workload_of(spec)
    profile = profile_plan(workload, ProfilePlan(dump_plan(Plan()), with_optimizer=False, timed_steps=0)).steady
    deltas = {slot.layer_fqn: slot.delta_bytes for slot in profile.slots if slot.kind == "forward"}
    traces = trace_layers(workload, TraceLayers(dump_plan(Plan()))).layers
    assert traces
    assert {trace.layer_fqn: held_bytes(trace) for trace in traces}.items() <= deltas.items()


def test_one_layer_of_each_class_in_order():
    traces = traced(MOE, batches=1)
    assert [(trace.class_name, trace.layer_fqn) for trace in traces.layers] == [
        ("TransformerBlock", "layers.0"),
        ("MoETransformerBlock", "layers.2"),
    ]
    assert traces.sac_op_time_s >= 0
    assert from_json(LayersTraced, to_json(traces)) == traces


def named(trace, name):
    return [op for op in trace.ops if f"{op.module_fqn}::{op.op_name}" == name]


def test_ops_of_the_dense_layer(dense):
    rows, width, hidden = 2 * 32, 128, 384
    (wq, *in_backward) = named(dense, "attention.wq::mm")
    assert wq.flops == 2 * rows * width * width
    assert wq.new_bytes == rows * width * 4
    assert [op.phase for op in in_backward] == ["backward", "backward"]
    assert sum(op.flops for op in in_backward) == 2 * wq.flops
    # w1, silu and w3 are kept for the gradients of the product, which w2 keeps; w2's own output nobody needs.
    assert named(dense, "feed_forward.w1::mm")[0].kept_bytes == rows * hidden * 4
    assert named(dense, "feed_forward::mul")[0].kept_bytes == rows * hidden * 4
    assert named(dense, "feed_forward.w2::mm")[0].kept_bytes == 0
    assert dense.input_bytes == rows * width * 4 + 2 * 32 * 32 * 4
    assert dense.spread is None


def test_the_norm_writes_in_place_to_its_mean(dense):
    (mean,) = (op for op in named(dense, "attention_norm::mean") if op.phase == "forward")
    (write,) = (op for op in dense.ops if op.op_name == "add_" and op.module_fqn == "attention_norm")
    assert write.occurrence == 0
    assert write.writes == (mean.outputs[0].storage,)
    assert not write.outputs[0].is_new


def test_occurrences_count_ops_of_a_name_in_a_module(dense):
    products = [op.occurrence for op in named(dense, "attention::mul") if op.phase == "forward"]
    assert products == [1, 2, 3, 4]
    assert all(op.occurrence == 0 for op in dense.backward)


def test_recomputation_stops_before_the_last_matmul(dense):
    """w2 saves its input before it runs, and neither its output nor the residual's is needed again."""
    assert [op.op_name for op in dense.forward[dense.recomputed_ops :]] == ["mm", "_unsafe_view", "add"]


def test_default_sac_keeps_every_second_matmul(dense):
    kept = [f"{op.module_fqn}::{op.op_name}" for op in dense.forward if op.kept_by_sac]
    assert kept == [
        f"{module}::mm" for module in ("attention.wq", "attention.wv", "feed_forward.w1", "feed_forward.w2")
    ]


def test_the_router_chooses(moe):
    assert [f"{op.module_fqn}::{op.op_name}" for op in moe.ops if op.chooses] == [
        "moe.router.gate::mm",
        "moe.router::topk",
    ]
    grouped = [op for op in moe.forward if op.op_name == "_grouped_mm"]
    assert [op.flops for op in grouped] == [2 * (2 * 32 * 2) * 128 * 128] * 3


class DropoutLayer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.w1 = nn.Linear(width, width)
        self.w2 = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.w2(self.dropout(self.w1(x)))


class WithDropout(Plain):
    layer = DropoutLayer


def test_random_ops_are_known():
    (trace,) = traced("tests.measure.test_tracing:WithDropout").layers
    assert {op.op_name for op in trace.ops if op.random} <= {"native_dropout", "bernoulli_"}
    assert any(op.random for op in trace.forward)


class PickingLayer(nn.Module):
    """As many rows as there are positive sums, then all of them."""

    def __init__(self, width=8):
        super().__init__()
        self.w1 = nn.Linear(width, width, bias=False)
        self.w2 = nn.Linear(width, width, bias=False)

    def forward(self, x):
        rows = (x.sum(dim=-1) > 0).nonzero().squeeze(-1)
        return x.index_add(0, rows, self.w1(x[rows])) + self.w2(x)


class Picking(Plain):
    layer = PickingLayer

    def batch(self, step):
        return torch.ones(4, 8) * torch.tensor([1, 1, 1, 1 if step else -1]).unsqueeze(1)


def test_sizes_that_depend_on_the_batch_are_found():
    (trace,) = traced("tests.measure.test_tracing:Picking", batches=2).layers
    assert trace.spread.same_ops
    assert trace.spread.kept_bytes[0] < trace.spread.kept_bytes[1] == trace.kept_bytes
    varying = {f"{op.module_fqn}::{op.op_name}" for op in trace.forward if op.varies}
    assert {"w1::mm", ".::nonzero", ".::index"} <= varying
    assert "w2::mm" not in varying


class BranchingLayer(PickingLayer):
    def forward(self, x):
        x = x + self.w2(x)
        return x + self.w1(x) if x[-1, 0] > 0 else x


class Branching(Picking):
    layer = BranchingLayer


def test_ops_that_depend_on_the_batch_are_found():
    (trace,) = traced("tests.measure.test_tracing:Branching", batches=2).layers
    assert not trace.spread.same_ops
    assert {op.module_fqn for op in trace.forward if op.varies} == {"w1", "."}
    assert {op.module_fqn for op in trace.forward if op.optional} == {"w1"}


def test_a_loop_over_experts_that_the_router_hits(tmp_path):
    """What each expert gets differs from batch to batch, and what all of them get together does not."""
    pytest.importorskip("transformers")
    fields = json.loads((EXAMPLES / "qwen3-moe-tiny.json").read_text()) | {"num_experts": 4}
    (tmp_path / "eager.json").write_text(json.dumps(fields | {"experts_implementation": "eager"}))
    dense, moe = traced(f"hf:{tmp_path / 'eager.json'}?layers=2&batch=1&seq=32").layers
    assert dense.spread is None
    assert moe.spread.kept_bytes[0] > 0
    varying = {f"{op.module_fqn}::{op.op_name}" for op in moe.forward if op.varies}
    assert {"mlp.experts::mm", "mlp.experts::index", "mlp.experts.act_fn::silu"} <= varying
    assert not any(name.startswith("self_attn") for name in varying)


def test_other_layers_may_be_recomputed():
    full = Plan.from_treatments({"layers.0": Treatment("full")})
    alone, beside = traced(DENSE, batches=1), traced(DENSE, full, batches=1)
    assert [op.op_name for op in alone.layers[0].ops] == [op.op_name for op in beside.layers[0].ops]
    assert alone.layers[0].kept_bytes == beside.layers[0].kept_bytes


class UnusedLayer(Plain):
    def model(self):
        model = Model()
        model.forward = lambda x: model.layers[0](x)
        return model


@pytest.mark.parametrize(
    ("spec", "plan", "asked", "error", "message"),
    [
        (DENSE, Plan.from_treatments({"layers.1": Treatment("full")}), {}, PlanError, "'layers.1' gets full"),
        (DENSE, Plan(compile="layer"), {}, PlanError, "hides the ops of layers"),
        (DENSE, Plan(), {"layer_fqns": ("layers.7",)}, PlanError, "'layers.7' is no layer of this model"),
        (
            "tests.measure.test_tracing:UnusedLayer",
            Plan(),
            {"layer_fqns": ("layers.1",)},
            TargetError,
            "'layers.1' is not called in step 0",
        ),
    ],
)
def test_what_can_not_be_traced(spec, plan, asked, error, message):
    with pytest.raises(error, match=message):
        traced(spec, plan, **asked)
