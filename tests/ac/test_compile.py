"""Plans with torch.compile: tiny layers, and the profiler counts what runs inside of compiled kernels too."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from actune.ac import apply_plan, remove_plan
from actune.errors import PlanError
from actune.measure import open_device
from actune.plan import NO_AC, Plan, Treatment
from tests.ac.models import IGNORE_TORCHS_OWN, Stack, stack, step, tokens, uniform

pytestmark = IGNORE_TORCHS_OWN


class Layer(nn.Module):
    """Three matmuls; only w2's input needs recomputation if w1's output is not kept."""

    def __init__(self, width=16):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x):
        return x + self.w3(torch.sin(self.w2(torch.sin(self.w1(x)))))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def layers(count, kind=Layer):
    torch.manual_seed(0)
    return Stack(*(kind() for _ in range(count)))


def agree(found, expected):
    return all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


def matmuls_in_backward(model, x):
    loss = model(x).square().mean()
    with profile(activities=[ProfilerActivity.CPU]) as events:
        loss.backward()
    return sum(event.count for event in events.key_averages() if event.key == "aten::mm")


def selective(nth=0, **knobs):
    return Treatment("selective", save_every_nth_mm=nth, **knobs)


def test_like_layers_share_code_and_unlike_rules_do_not():
    """Dynamo does not look into a checkpoint's context functions; 11 kinds are above its limit of 8 for one code."""
    x = tokens()
    treatments = [
        Treatment("full"),
        selective(0, save=("w1::mm",)),
        selective(0, save=("w2::mm",)),
        selective(0, save=("w1::mm", "w2::mm")),
        selective(0),
        selective(1),
        selective(2),
        selective(1, filter_fqns=("w1",), filter_by="name"),
        selective(1, filter_fqns=("w1",)),
        Treatment("full", wrap=("w1", "w2")),
        NO_AC,
    ]
    # Nobody needs w3's output. In one graph a region's own output is recomputed too, so both parts of `wrap` are.
    again = [2, 1, 1, 0, 2, 0, 1, 1, 2, 2, 0]
    assert len(set(treatments)) == len(treatments) > torch._dynamo.config.recompile_limit
    model = layers(2 * len(treatments))
    expected = step(model, x)
    plan = Plan.from_treatments(
        {f"layers.{i}": treatments[i % len(treatments)] for i in range(len(model.layers))}, compile="layer"
    )
    apply_plan(model, plan)
    found = step(model, x)
    assert agree(found, expected)
    assert counters["stats"]["unique_graphs"] == len(treatments)
    assert not counters["unimplemented"]
    without_ac = 6 * len(model.layers)
    assert matmuls_in_backward(model, x.requires_grad_()) == without_ac + 2 * sum(again)
    remove_plan(model)
    assert agree(step(model, x), expected)
    assert counters["stats"]["unique_graphs"] == len(treatments)


@pytest.mark.parametrize("mode", ["model", "inside"])
def test_model_and_inside(mode):
    model, x = layers(12), tokens()
    expected = step(model, x)
    treatment = Treatment("full") if mode == "inside" else selective(0, save=("w1::mm",))
    apply_plan(model, uniform(treatment, compile=mode))
    assert agree(step(model, x), expected)
    assert counters["stats"]["unique_graphs"] == 1
    # Inside, the checkpoint can't see into the kernel and runs the whole layer again.
    again = 3 if mode == "inside" else 1
    assert matmuls_in_backward(model, x.requires_grad_()) == 12 * (6 + again)


def test_what_is_named_and_never_runs_is_an_error_under_compile_too():
    model = apply_plan(layers(2), uniform(selective(0, save=("w1::sin",)), compile="layer"))
    with pytest.raises(PlanError, match=r"save: no op matched 'w1::sin' when layers\.0 ran.* in 'w1': .*mm"):
        step(model, tokens())


class Numbered(Layer):
    """A number that its forward reads makes each layer a variant of its own for Dynamo."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def forward(self, x):
        return super().forward(x) * (1 + self.number)


def test_dynamos_recompile_limit_is_an_error_and_not_eager_execution():
    model = layers(4, Numbered)
    for number, layer in enumerate(model.layers):
        layer.number = number
    apply_plan(model, uniform(Treatment("full"), compile="layer"))
    with (
        torch._dynamo.config.patch(recompile_limit=2),
        pytest.raises(PlanError, match=r"compile: layers\.2 was compiled 2 times .* raise the limit, or set compile"),
    ):
        step(model, tokens())


def test_memory_budgets_per_layer_keep_different_bytes():
    x = tokens(64)
    device = open_device("cpu")

    def peak(share):
        torch.manual_seed(0)
        model = Stack(*(Layer(64) for _ in range(2)))
        plan = {"layers.0": Treatment("memory_budget", memory_budget=1.0), "layers.1": NO_AC}
        plan["layers.1"] = Treatment("memory_budget", memory_budget=share)
        apply_plan(model, Plan.from_treatments(plan, compile="layer"))
        step(model, x)
        model.zero_grad()
        start = device.live_bytes()
        with device.peak_probe() as probe:
            kept = model(x)
        assert kept.requires_grad
        return probe.peak_bytes - start

    assert peak(1.0) > peak(0.0)


@pytest.mark.parametrize("mode", ["layer", "model"])
def test_memory_budget_refuses_dropout(mode):
    model = stack(dropout=0.1)
    treatment = Treatment("memory_budget", memory_budget=0.5)
    with pytest.raises(PlanError, match=r"memory_budget: .* draws random numbers \(dropout at '.*drop1'\)"):
        apply_plan(model, uniform(treatment, compile=mode))
    apply_plan(model, uniform(Treatment("memory_budget", memory_budget=1.0), compile=mode))


def test_memory_budget_of_a_whole_model_needs_all_layers_and_looks_outside_of_them():
    half = uniform(Treatment("memory_budget", memory_budget=0.5), compile="model", layers="layers.1-2")
    with pytest.raises(PlanError, match=r'memory_budget: layers\.0 have another policy.* set compile = "layer"'):
        apply_plan(stack(), half)
    model = stack()
    model.embedding_dropout = nn.Dropout(0.1)
    whole = uniform(Treatment("memory_budget", memory_budget=0.5), compile="model")
    with pytest.raises(PlanError, match=r"memory_budget: the model draws random numbers \(dropout at 'embedding_drop"):
        apply_plan(model, whole)


def test_a_compiled_module_is_refused():
    model = stack()
    model.layers[1].compile()
    with pytest.raises(PlanError, match=r"compile: layers\.1 is compiled already\. .* the order is AC, compile, FSDP"):
        apply_plan(model, uniform(NO_AC, compile="layer"))


def test_dropout_under_compile_draws_the_same_masks_in_recomputation():
    model, x = stack(2, dropout=0.5), tokens()
    expected = step(model, x)
    with torch._inductor.config.patch(fallback_random=True):  # eager's own numbers
        for treatment in (Treatment("full"), Treatment("selective", save=("drop1::native_dropout",))):
            apply_plan(model, uniform(treatment, compile="layer"))
            assert agree(step(model, x), expected)
            remove_plan(model)
