"""SAC around code that was compiled inside: by the model, as torchtitan compiles FlexAttention, or by `inside`."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import nn
from torch.profiler import ProfilerActivity, profile

from actune.ac import Application, apply_plan, compiling, remove_plan
from actune.errors import PlanError
from actune.measure import Workload, open_device
from actune.plan import Plan, Treatment
from tests.ac.models import IGNORE_TORCHS_OWN, Stack, step, tokens, uniform

pytestmark = IGNORE_TORCHS_OWN
WIDTH = 16
OP = "inductor_compiled_code"


def core(x, weight):
    return torch.tanh(torch.mm(torch.sin(x.flatten(0, 1)), weight)).view_as(x)


def noisy_core(x, weight):
    return nn.functional.dropout(core(x, weight), 0.5)


compiled = functools.cache(torch.compile)
"""Once for all layers; when it is called first, as inductor warns on import."""


class Piece(nn.Module):
    """One matmul in code that the model compiles for itself; one in a Linear after it."""

    core = staticmethod(core)

    def __init__(self, dropout=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.dropout = dropout

    def forward(self, x):
        h = compiled(self.core)(x, self.weight)
        return x + torch.sin(self.out(nn.functional.dropout(h, self.dropout)))


class NoisyPiece(Piece):
    core = staticmethod(noisy_core)


class PieceTarget:
    def model(self):
        return Stack(Piece())

    def batch(self, step):
        return tokens(WIDTH)

    def loss(self, model, batch):
        return model(batch).square().mean()


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    assert not inductor_config.wrap_inductor_compiled_regions
    torch._dynamo.reset()


def selective(**knobs):
    return Treatment("selective", save_every_nth_mm=0, **knobs)


def matmuls_in_backward(model, x):
    loss = model(x).square().mean()
    with profile(activities=[ProfilerActivity.CPU]) as events:
        loss.backward()
    # Under a dispatch mode an op is recorded twice, one within the other; by the clock's rounding the inner one may end
    # later, but it does not begin after the outer one's end.
    ranges = [event.time_range for event in events.events() if event.name == "aten::mm"]
    count, last_end = 0, 0.0
    for span in sorted(ranges, key=lambda span: (span.start, -span.end)):
        if span.start >= last_end:
            count, last_end = count + 1, span.end
    return count


def agree(found, expected):
    return all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


@pytest.mark.parametrize(
    ("mode", "save_ops", "recomputed"),
    [
        ("off", ("default",), 2),  # SAC sees `mm.out` writing to what the kernel made: nothing that it could keep
        ("off+ops", ("default",), 1),  # the piece is one op of the save list; the Linear is recomputed
        ("off+ops", ("topk",), 2),
        ("inside", None, 2),
        ("inside+ops", ("default",), 0),  # the region is one op
        ("inside+ops", ("topk",), 2),
    ],
)
def test_what_is_compiled_inside_is_one_op_that_is_kept_if_the_plan_says_so(mode, save_ops, recomputed):
    torch.manual_seed(0)
    model, x = Stack(Piece()), tokens(WIDTH)
    expected = step(model, x)
    torch._dynamo.reset()
    # Nobody needs the sine of the Linear's output again, but its input; in eager SAC a region runs to its last kept op.
    treatment = (
        Treatment("full", early_stop=False) if save_ops is None else selective(save_ops=save_ops, early_stop=False)
    )
    apply_plan(model, uniform(treatment, compile=mode))
    assert agree(step(model, x), expected)
    assert matmuls_in_backward(model, x.requires_grad_()) == 4 + recomputed
    remove_plan(model)
    assert model.layers[0]._compiled_call_impl is None
    assert agree(step(model, x), expected)


def test_the_config_is_as_it_was_when_a_piece_raises():
    def fails(x, weight):
        assert inductor_config.wrap_inductor_compiled_regions
        raise RuntimeError("from within")

    model = Stack(Piece())
    model.layers[0].forward = lambda x: fails(x, None)
    apply_plan(model, uniform(selective(), compile="off+ops"))
    with pytest.raises(RuntimeError, match="from within"):
        model(tokens(WIDTH))
    assert not inductor_config.wrap_inductor_compiled_regions


def test_random_numbers_after_a_kept_piece_that_draws_are_refused():
    """They would be drawn again as other ones: the piece that is kept does not advance the generator."""
    model, x = Stack(NoisyPiece(dropout=0.5)), tokens(WIDTH)
    apply_plan(model, uniform(selective(), compile="off+ops"))
    with pytest.raises(PlanError, match="draws random numbers in place after the output of another random op is kept"):
        step(model, x)
    remove_plan(model)
    quiet = Stack(Piece(dropout=0.5))
    expected = step(quiet, x)
    torch._dynamo.reset()
    apply_plan(quiet, uniform(selective(), compile="off+ops"))
    assert agree(step(quiet, x), expected)


def test_plans_that_see_a_piece_otherwise_have_it_compiled_anew_between_them():
    workload = Workload(f"{__name__}:PieceTarget", open_device("cpu"), seed=0)
    x = tokens(WIDTH)
    plain, as_ops = (uniform(selective(early_stop=False), compile=mode) for mode in ("off", "off+ops"))
    found = []
    for plan in (plain, as_ops, plain):
        workload.fetch_batch(0)
        with workload.under(plan):
            found.append(matmuls_in_backward(workload.model, x))
    assert found == [3 + 2, 3 + 1, 3 + 2]  # the input needs no gradient
    workload.forget_plans()


def test_torch_without_the_config_is_refused(monkeypatch):
    monkeypatch.setattr(compiling, "inductor_config", SimpleNamespace())
    for mode in ("off+ops", "inside+ops"):
        with pytest.raises(
            PlanError, match=rf'compile: "{mode[:-4]}\+ops" needs torch\._inductor.*Upgrade torch, or set'
        ):
            Application(Stack(Piece()), uniform(Treatment("full"), compile=mode))


@pytest.mark.parametrize("knobs", [{"save": ("out::mm",)}, {"filter_fqns": ("out",)}])
def test_modules_inside_of_one_op_can_not_be_named(knobs):
    with pytest.raises(
        PlanError, match=r"names a module in a region that is compiled .* Name \.::inductor_compiled_code"
    ):
        uniform(selective(**knobs), compile="inside+ops")
    assert isinstance(uniform(selective(save=(f".::{OP}",)), compile="inside+ops"), Plan)
