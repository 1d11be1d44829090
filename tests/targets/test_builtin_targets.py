from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from actune.target_spec import BUILTIN_TARGETS
from actune.targets import BoundTarget, load_target
from actune.targets.builtin import BUILDERS
from actune.targets.dense import DecoderSizes, rope_table, rotate
from actune.targets.moe import ExpertSizes, MoE

SMALL = "?layers=2&batch=2&seq=32"


def gradients(target: BoundTarget, model: nn.Module, step: int) -> list[Tensor]:
    model.zero_grad()
    target.loss(model, target.batch(step)).backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def test_names_are_those_of_the_command_line() -> None:
    assert set(BUILDERS) == set(BUILTIN_TARGETS)


@pytest.mark.parametrize("name", BUILTIN_TARGETS)
def test_number_of_layers(name: str) -> None:
    layers = load_target(name).model().get_submodule("layers")
    assert len(list(layers.children())) == (12 if name.endswith("-12") else 4)


@pytest.mark.parametrize("name", ["dense-tiny", "moe-tiny"])
def test_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    target = load_target(name + SMALL)
    model = target.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = target.loss(model, target.batch(0))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("name", ["dense-tiny", "moe-tiny"])
def test_gradients_repeat_bitwise_and_depend_on_the_step(name: str) -> None:
    target = load_target(name + SMALL)
    torch.manual_seed(0)
    model = target.model()
    first, again, other = (gradients(target, model, step) for step in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", ["dense-tiny", "moe-tiny"])
def test_weights_come_from_the_global_seed(name: str) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in load_target(name + SMALL).model().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["dense-tiny", "moe-tiny"])
def test_a_step_can_be_traced_without_running_it(name: str) -> None:
    with FakeTensorMode():
        target = load_target(name + SMALL)
        model = target.model()
        optimizer = target.optimizer(model)
        target.loss(model, target.batch(0)).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_attention_is_causal() -> None:
    model = load_target("dense-tiny" + SMALL).model()
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 5] = 1
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :5], after[0, :5])
    assert not torch.allclose(before[0, 5:], after[0, 5:])


def test_rotary_scores_depend_on_distance_only() -> None:
    rope = rope_table(seq=16, head_width=8)
    q, k = torch.randn(2, 8)
    rotated_q, rotated_k = (rotate(x.expand(1, 1, 16, 8), rope)[0, 0] for x in (q, k))
    torch.testing.assert_close(rotated_q[3] @ rotated_k[1], rotated_q[12] @ rotated_k[10])
    torch.testing.assert_close(rotated_q[0], q)


def test_a_mixture_is_what_its_experts_say_token_by_token() -> None:
    torch.manual_seed(0)
    moe = MoE(32, ExpertSizes(experts=4, top_k=2, hidden=16))
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.mul_(10)  # so that the routed share is far above bfloat16's rounding
        x = torch.randn(2, 6, 32)
        weights, indices = moe.router(x.view(12, 32))
        expected = moe.shared_experts(x).view(12, 32)
        w1, w2, w3 = moe.experts.w1, moe.experts.w2, moe.experts.w3
        for token, row in enumerate(x.view(12, 32)):
            for weight, e in zip(weights[token], indices[token].tolist(), strict=True):
                expected[token] += weight * (w2[e] @ (nn.functional.silu(w1[e] @ row) * (w3[e] @ row)))
        torch.testing.assert_close(moe(x).view(12, 32), expected, rtol=0.05, atol=0.02 * expected.abs().max().item())
    assert len(indices.unique()) > 2
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(12))


def test_an_expert_without_tokens_gets_a_zero_gradient() -> None:
    moe = MoE(16, ExpertSizes(experts=8, top_k=1, hidden=8))
    moe(torch.randn(1, 2, 16)).sum().backward()
    gradient = moe.experts.w1.grad
    assert gradient is not None
    assert (gradient.abs().sum(dim=(1, 2)) == 0).sum() >= 6


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"layers": 0}, "layers: 0"), ({"heads": 3}, "width: 128"), ({"kv_heads": 3}, "kv_heads: 3")],
)
def test_sizes_that_make_no_decoder(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderSizes(**{"layers": 2, **sizes})


@pytest.mark.parametrize(("sizes", "message"), [({"top_k": 9}, "top_k: 9"), ({"hidden": 0}, "hidden: 0")])
def test_sizes_that_make_no_mixture(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertSizes(**sizes)
