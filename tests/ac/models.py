"""Small models for the tests of apply, SAC and compile."""

import pytest
import torch
from torch import nn

from actune.plan import Plan, Rule, Treatment


class DecomposedNorm(nn.Module):
    """RMSNorm as the CPU computes it: pow, mean, add_, rsqrt; the add_ writes over the mean."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).add_(1e-5)) * self.weight


class Attention(nn.Module):
    def __init__(self, width, dropout_p):
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.dropout_p = dropout_p

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (2, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout_p)
        return self.wo(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, bias):
        super().__init__()
        self.w1 = nn.Linear(width, 2 * width, bias=bias)
        self.w2 = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)))


class Block(nn.Module):
    def __init__(self, width=16, *, dropout=0.0, attention_dropout=0.0, bias=False):
        super().__init__()
        self.attention_norm = DecomposedNorm(width)
        self.attention = Attention(width, attention_dropout)
        self.drop1 = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, bias)
        self.drop2 = nn.Dropout(dropout)
        self.register_buffer("scale", torch.full((), 0.5))

    def forward(self, x):
        h = x + self.drop1(self.attention(self.attention_norm(x)))
        return h + self.drop2(self.feed_forward(h)) * self.scale


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def stack(count=3, **knobs):
    torch.manual_seed(0)
    return Stack(*(Block(**knobs) for _ in range(count)))


def tokens(width=16):
    return torch.randn(2, 8, width, generator=torch.Generator().manual_seed(1))


def uniform(treatment, *, compile="off", layers="layers.*"):
    return Plan((Rule((layers,), treatment),), compile)


def step(model, x, *, seed=7):
    """Output, input gradient and every parameter gradient of one step with the same random numbers."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    out = model(x)
    out.square().mean().backward()
    return {"out": out.detach(), "x": x.grad, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


SAVE_MEAN = Treatment("selective", save_every_nth_mm=0, save=("attention_norm::mean",))

IGNORE_TORCHS_OWN = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
"""What inductor of torch 2.13 warns of on import, and dynamo where a recompilation has an inner tensor as its input."""
