"""On a simulated card, ops are the card's own, whatever they are on a CPU."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from actune.measure.simulated.card_ops import card_ops


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "aten":
            self.seen.append(op.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return op(*args, **(kwargs or {}))


def names_of(run, *shapes, dtype=torch.bfloat16):
    """Ops of a forward and backward, and the shapes of gradients."""
    with FakeTensorMode(), card_ops():
        inputs = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        with Names() as names:
            run(*inputs).sum().backward()
    assert [tuple(x.grad.shape) for x in inputs] == list(shapes)
    return names.seen


def attention(**kwargs):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **kwargs)


SAME = ((1, 4, 64, 32),) * 3
GROUPED = ((1, 4, 64, 32), (1, 2, 64, 32), (1, 2, 64, 32))
LATENT = ((1, 4, 64, 48), (1, 4, 64, 48), (1, 4, 64, 32))
FLASH, EFFICIENT = "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"


@pytest.mark.parametrize(
    ("shapes", "dtype", "kwargs", "expected"),
    [
        (SAME, torch.bfloat16, {"is_causal": True}, FLASH),
        (GROUPED, torch.float16, {"is_causal": True, "enable_gqa": True}, FLASH),
        (LATENT, torch.bfloat16, {"is_causal": True}, EFFICIENT),
        (SAME, torch.float32, {"is_causal": True}, EFFICIENT),
    ],
)
def test_attention(shapes, dtype, kwargs, expected):
    seen = names_of(attention(**kwargs), *shapes, dtype=dtype)
    assert [name for name in seen if "attention" in name] == [expected, f"{expected}_backward"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16])
def test_attention_with_a_mask(dtype):
    def run(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(1, 1, 64, 64, dtype=dtype))

    seen = names_of(run, *SAME)
    assert [name for name in seen if "attention" in name] == [EFFICIENT, f"{EFFICIENT}_backward"]


def test_grouped_queries_in_float32_have_no_kernel_of_their_own():
    seen = names_of(attention(is_causal=True, enable_gqa=True), *GROUPED, dtype=torch.float32)
    assert seen.count("bmm") == 6


def test_attention_inside_of_another_function():
    layer = nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), card_ops(), Names() as names:
        x = torch.empty(1, 16, 32, dtype=torch.bfloat16, requires_grad=True)
        layer(x, x, x, need_weights=False)[0].sum().backward()
    assert FLASH in names.seen


def test_rms_norm_is_one_kernel_each_way():
    seen = names_of(lambda x, w: F.rms_norm(x, [8], w, 1e-5), (4, 8), (8,))
    assert [name for name in seen if "norm" in name] == ["_fused_rms_norm", "_fused_rms_norm_backward"]
    assert not {"pow", "mean", "rsqrt"} & set(seen)


def test_dropout_is_one_kernel_each_way():
    seen = names_of(lambda x: F.dropout(x, 0.5), (4, 8))
    assert [name for name in seen if "dropout" in name] == ["native_dropout", "native_dropout_backward"]
    assert "native_dropout" not in names_of(lambda x: F.dropout(x, 0.5, training=False) * 1, (4, 8))


def test_nothing_is_left_behind():
    before = (F.scaled_dot_product_attention, F.rms_norm, torch.rms_norm, F.dropout, torch.dropout)
    with card_ops():
        assert F.rms_norm is not before[1]
    with pytest.raises(RuntimeError), card_ops():
        torch.mm(torch.ones(2), torch.ones(2))
    assert (F.scaled_dot_product_attention, F.rms_norm, torch.rms_norm, F.dropout, torch.dropout) == before
