"""What ran compiled, on the block that started this project: attention beside a MoE that reads counts from a tensor."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from actune.measure import Workload, measure_plan, open_device
from actune.measure.compiled_code import GraphBreaks, StepWatch
from actune.plan import NO_AC, Plan, Treatment, dump_plan
from actune.records import CompiledCode, Measurement, MeasurePlan, Outcome
from tests.ac.models import IGNORE_TORCHS_OWN, Stack, uniform

pytestmark = IGNORE_TORCHS_OWN
WIDTH = 8
APART = ("attention", "moe")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wo(torch.tanh(self.wq(x)))
        return out


class MoE(nn.Module):
    """Routes by counts that Python reads: `tolist` breaks the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        chosen = self.gate(flat).argmax(-1)
        counts = (chosen[:, None] == torch.arange(2)).sum(0).tolist()
        order = torch.argsort(chosen)
        parts = torch.split(flat[order], counts)
        out = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return torch.empty_like(out).index_copy(0, order, out).view_as(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.moe = Attention(), MoE()

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(x)
        out: Tensor = h + self.moe(h)
        return out


class Target:
    def model(self) -> nn.Module:
        return Stack(Block(), Block())

    def batch(self, step: int) -> Tensor:
        return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).square().mean()
        return loss


def measured(plan: Plan) -> Measurement:
    workload = Workload(f"{__name__}:Target", open_device("cpu"), seed=0)
    counters.clear()
    measurement = measure_plan(workload, MeasurePlan(dump_plan(plan), None, None, timed_pairs=0)).measurement
    assert measurement.outcome is Outcome.OK, measurement.message
    return measurement


def code_of(plan: Plan) -> CompiledCode:
    code = measured(plan).compiled_code
    assert code is not None
    return code


def test_a_block_wrapped_whole_runs_eagerly_and_wrapped_apart_only_its_moe_does() -> None:
    whole = measured(uniform(Treatment("full"), compile="layer"))
    assert counters["stats"]["unique_graphs"] == 0  # Dynamo's own count: it compiled nothing
    assert whole.compiled_code is not None
    assert whole.compiled_code.eager_fqns == ("layers.0", "layers.1")
    assert len(whole.compiled_code.graph_breaks) == 1
    assert whole.compiled_code.graph_breaks[0].startswith("test_compiled_code.py:")
    assert whole.compile_s is not None
    apart = code_of(uniform(Treatment("full", wrap=APART), compile="layer"))
    assert counters["stats"]["unique_graphs"] > 0
    assert apart.eager_fqns == ("layers.0.moe", "layers.1.moe")
    assert apart.graph_breaks == whole.compiled_code.graph_breaks


def test_without_a_checkpoint_around_the_break_nothing_is_eager() -> None:
    code = code_of(uniform(NO_AC, compile="layer"))
    assert code.eager_fqns == ()
    assert len(code.graph_breaks) == 1


def test_a_plan_that_compiles_nothing_says_nothing() -> None:
    assert measured(uniform(Treatment("full"))).compiled_code is None


class Flex(nn.Module):
    def __init__(self, run: object) -> None:
        super().__init__()
        self.run = run

    def forward(self, q: Tensor) -> Tensor:
        out: Tensor = self.run(q, q, q)  # type: ignore[operator]
        return out


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_seen_compiled_and_eager() -> None:
    """Forward only: it has no backward on a CPU."""
    q = torch.randn(1, 2, 128, 16)
    compiled = torch.compile(flex_attention)
    ran = {}
    for name, run in {"eager": [flex_attention], "compiled": [compiled], "both": [compiled, flex_attention]}.items():
        model = Stack(*(Flex(each) for each in run))
        model(q)
        watch = StepWatch(model)
        with watch.watching():
            model(q)
        ran[name] = watch.compiled_code(Plan(), ("layers.0",), GraphBreaks()).flex_attention
    assert ran == {"eager": "eager", "compiled": "compiled", "both": "both"}


def test_what_watched_before_goes_on_after_an_error() -> None:
    def before(*_: object) -> None:
        pass

    sys.setprofile(before)
    try:
        with pytest.raises(RuntimeError), StepWatch(nn.Linear(1, 1)).watching():
            raise RuntimeError
        assert sys.getprofile() is before
    finally:
        sys.setprofile(None)
