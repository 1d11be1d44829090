"""Times of ops against the formula by hand, and FLOPs against PyTorch's own counter."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from actune.device_spec import load_device_spec
from actune.measure.flops import op_flops
from actune.measure.simulated.card_ops import card_ops
from actune.measure.simulated.roofline import Roofline

H100 = load_device_spec("h100")
BANDWIDTH = H100.bandwidth_bytes_per_s * H100.bandwidth_efficiency
BFLOAT16 = H100.flops_per_s.bfloat16 * H100.compute_efficiency
FLOAT32 = H100.flops_per_s.float32 * H100.compute_efficiency


class Times(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.roofline, self.seen, self.flops = Roofline(H100), [], 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if op.namespace == "aten":
            self.seen.append((op.overloadpacket.__name__, self.roofline.op_time_s(op, args, kwargs or {}, out)))
            self.flops += op_flops(op, args, kwargs or {}, out) or 0
        return out


def times_of(run, *shapes, dtype=torch.bfloat16):
    with FakeTensorMode(), card_ops():
        inputs = [torch.empty(shape, dtype=dtype) for shape in shapes]
        with Times() as times:
            run(*inputs)
    return times.seen


def test_a_large_matmul_is_bound_by_its_flops():
    n = 4096
    assert times_of(torch.mm, (n, n), (n, n)) == [("mm", pytest.approx(2 * n**3 / BFLOAT16 + H100.launch_s))]
    assert times_of(torch.mm, (n, n), (n, n), dtype=torch.float32) == [
        ("mm", pytest.approx(2 * n**3 / FLOAT32 + H100.launch_s))
    ]


def test_attention_of_shared_heads_computes_as_much_as_if_each_query_had_its_own(monkeypatch):
    """Also with the formulas of a torch that has none for it (before pytorch #177188)."""

    def only_equal_heads(query, key, value, *args, out_shape=None, **kwargs):
        assert query[1] == key[1] == value[1]
        batch, heads, length, width = query
        return 2 * batch * heads * length * key[2] * (width + value[3])

    flash = torch.ops.aten._scaled_dot_product_flash_attention
    monkeypatch.setitem(flop_counter.flop_registry, flash, flop_counter.shape_wrapper(only_equal_heads))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    query, few = torch.randn(2, 4, 16, 8), torch.randn(2, 2, 16, 8)
    for kv in (few, few.repeat_interleave(2, dim=1)):
        assert op_flops(op, (query, kv, kv), {}, op(query, kv, kv)) == 2 * 2 * 4 * 16 * 16 * 16
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    out = torch.randn(2, 4, 16, 8)
    assert op_flops(backward, (out, query, few, few), {}, None) == 5 * 2 * 2 * 4 * 16 * 16 * 8


def test_tf32_where_torch_allows_it():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        ((_, time_s),) = times_of(torch.mm, (4096, 4096), (4096, 4096), dtype=torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    assert time_s == pytest.approx(2 * 4096**3 / (H100.flops_per_s.tf32 * H100.compute_efficiency) + H100.launch_s)


def test_a_thin_matmul_and_a_sum_are_bound_by_their_bytes():
    n = 8192
    assert times_of(torch.mv, (n, n), (n,))[-1][1] == pytest.approx(2 * (n * n + 2 * n) / BANDWIDTH + H100.launch_s)
    assert times_of(torch.add, (n, n), (n, n)) == [("add", pytest.approx(2 * 3 * n * n / BANDWIDTH + H100.launch_s))]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.view(-1),
        lambda x: x.t(),
        lambda x: x.expand(4, 64, 64),
        lambda x: x.detach(),
        lambda x: x.split(8),
        torch.empty_like,
    ],
)
def test_views_and_empty_tensors_cost_nothing(run):
    assert [time_s for _, time_s in times_of(run, (64, 64))] == [0.0]


def test_an_expanded_tensor_is_read_once():
    ((_, expand_s), (_, add_s)) = times_of(lambda x, y: x.expand(4096, 4096) + y, (4096,), (4096, 4096))
    assert expand_s == 0
    assert add_s == pytest.approx(2 * (4096 + 2 * 4096**2) / BANDWIDTH + H100.launch_s)


def test_an_embedding_reads_the_rows_it_returns():
    def run(table):
        return F.embedding(torch.zeros(16, dtype=torch.int64), table)

    (_, zeros_s), (name, time_s) = times_of(run, (100_000, 1024))
    assert (name, zeros_s > 0) == ("embedding", True)
    assert time_s == pytest.approx((2 * 2 * 16 * 1024 + 16 * 8) / BANDWIDTH + H100.launch_s)


def test_a_fused_optimizer_reads_and_writes_its_lists():
    """Parameters, both averages and the step count are written; gradients are read too."""
    with FakeTensorMode():
        parameter = nn.Parameter(torch.empty(2**20))
        parameter.grad = torch.empty(2**20)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        optimizer.step()
        with Times() as times:
            optimizer.step()
    ((_, time_s),) = [entry for entry in times.seen if entry[0] == "_fused_adamw_"]
    assert time_s == pytest.approx((4 + 4) * 4 * 2**20 / BANDWIDTH + H100.launch_s, rel=0.15)


def test_causal_attention_does_half_of_the_work():
    shape = (1, 32, 8192, 128)

    def attention(is_causal):
        ((_, time_s),) = [
            entry
            for entry in times_of(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal), shape, shape, shape
            )
            if "attention" in entry[0]
        ]
        return time_s - H100.launch_s

    assert attention(False) == pytest.approx(4 * 32 * 8192**2 * 128 / BFLOAT16)
    assert attention(True) == pytest.approx(attention(False) / 2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64, bias=i == 0, dtype=torch.bfloat16) for i in range(4))

    def forward(self, x):
        q, k, v = (w(x).view(2, 32, 4, 16).transpose(1, 2) for w in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 32, 64))


def test_flops_are_those_of_torchs_counter():
    with FakeTensorMode(), card_ops():
        model = Block()
        x = torch.empty(2, 32, 64, dtype=torch.bfloat16)
        with Times() as times:
            model(x).sum().backward()
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
    assert times.flops == counter.get_total_flops() > 0
