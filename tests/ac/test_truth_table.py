"""The truth table of torchtitan's rules (field notes, section 1): one block of three chained Linears without bias.

FLOPs in units of 2·512³, kept bytes in MiB, for input 512×512 in float32.
"""

import pytest
import torch
from torch import nn

from actune.ac import apply_plan
from actune.plan import Plan, Rule, Treatment
from tests.ac.measures import backward_flops, gradients, kept_bytes, recomputed_matmuls

UNIT_FLOPS = 2 * 512**3
MIB = 2**20


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(512, 512, bias=False)


class Moe(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = Router()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wq = nn.Linear(512, 512, bias=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = Moe()
        self.attention = Attention()
        self.output = nn.Linear(512, 1024, bias=False)

    def forward(self, x):
        return self.output(self.attention.wq(self.moe.router.gate(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block()])

    def forward(self, x):
        return self.layers[0](x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def x():
    return torch.randn(512, 512, generator=torch.Generator().manual_seed(1)).requires_grad_()


def plan(*filter_fqns, policy="selective"):
    if policy == "none":
        return Plan()
    knobs = {"filter_fqns": filter_fqns} if policy == "selective" else {}
    return Plan((Rule(("layers.*",), Treatment(policy, early_stop=False, **knobs)),))


TABLE = [
    # plan, backward FLOPs, kept MiB, matmuls that run again
    pytest.param(plan(policy="none"), 8, 2, [], id="none"),
    pytest.param(plan(), 9, 3, ["wq"], id="sac"),
    pytest.param(plan("moe.router.gate"), 10, 2, ["gate", "wq"], id="filter-gate"),
    pytest.param(plan("output"), 11, 1, ["wq", "output"], id="filter-output"),
    pytest.param(plan(policy="full"), 12, 0, ["gate", "wq", "output"], id="full"),
]


@pytest.mark.parametrize(("plan", "flops", "kept_mib", "recomputed"), TABLE)
def test_truth_table(model, x, plan, flops, kept_mib, recomputed):
    without_ac = gradients(model, x)
    apply_plan(model, plan)
    assert backward_flops(model, x) / UNIT_FLOPS == flops
    assert kept_bytes(model, x) / MIB == kept_mib
    assert recomputed_matmuls(model, x) == recomputed
    with_ac = gradients(model, x)
    assert with_ac.keys() == without_ac.keys()
    assert all(torch.equal(with_ac[name], without_ac[name]) for name in without_ac)


def test_filter_by_name_recomputes_only_the_named_linear(model, x):
    """Where the filter by shape drops attention.wq with moe.router.gate, the filter by name keeps it: FLOPs 9, not 10.

    gate is not counted, so wq is matmul 1 and kept, and output is matmul 2 and recomputed: gate 1 + output 2 = 3 more
    than without AC.
    """
    rule = Rule(
        ("layers.*",),
        Treatment("selective", filter_fqns=("moe.router.gate",), filter_by="name", early_stop=False),
    )
    apply_plan(model, Plan((rule,)))
    assert recomputed_matmuls(model, x) == ["gate", "output"]
    assert backward_flops(model, x) / UNIT_FLOPS == 8 + 1 + 2
    assert kept_bytes(model, x) / MIB == 1


@pytest.mark.parametrize(
    ("nth", "recomputed"), [(0, ["gate", "wq", "output"]), (1, []), (2, ["wq"]), (3, ["wq", "output"])]
)
def test_every_nth_matmul(model, x, nth, recomputed):
    rule = Rule(("layers.*",), Treatment("selective", save_every_nth_mm=nth, early_stop=False))
    apply_plan(model, Plan((rule,)))
    assert recomputed_matmuls(model, x) == recomputed


def test_saved_by_name(model, x):
    rule = Rule(
        ("layers.*",), Treatment("selective", save_every_nth_mm=0, save=("attention.wq::mm",), early_stop=False)
    )
    without_ac = gradients(model, x)
    apply_plan(model, Plan((rule,)))
    assert recomputed_matmuls(model, x) == ["gate", "output"]
    assert kept_bytes(model, x) / MIB == 1
    with_ac = gradients(model, x)
    assert all(torch.equal(with_ac[name], without_ac[name]) for name in without_ac)
