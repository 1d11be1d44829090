"""Mixtures route alike in forward and in recomputation, under every policy, unless the plan says otherwise."""

import contextlib
import copy
import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import CheckpointError

from actune.ac import apply_plan, remove_plan
from actune.ac.routing import NO_ROUTING, Routing, find_routing
from actune.errors import PlanError
from actune.plan import Plan, Treatment, dump_plan, parse_plan, plan_hash
from actune.targets.dense import DecoderSizes, rope_table
from actune.targets.moe import ExpertSizes, MoETransformerBlock
from tests.ac.measures import gradients, kept_bytes
from tests.ac.models import IGNORE_TORCHS_OWN, Stack, uniform

TOKENS, WIDTH, EXPERTS, TOP_K = 24, 32, 8, 2
KEEP_NOTHING = {"save_every_nth_mm": 0, "save_ops": ()}
PARTS = ("attention", "moe")
TREATMENTS = [
    Treatment("full"),
    Treatment("full", wrap=PARTS),
    Treatment("full", wrap=("moe.router", "moe.experts")),
    Treatment("full", early_stop=False),
    Treatment("selective"),
    Treatment("selective", wrap=PARTS),
    Treatment("selective", **KEEP_NOTHING),
    Treatment("selective", wrap=("moe.router",), **KEEP_NOTHING),
    Treatment("selective", **KEEP_NOTHING, save=("attention.wo::mm",)),
]


class Drift(torch.autograd.Function):
    """A matmul with the rows of its weight in another order, and the gradients of one without."""

    @staticmethod
    def forward(ctx, x, weight, shift):
        ctx.save_for_backward(x, weight)
        return x @ weight.roll(shift, 0).t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x, None


class DriftingGate(nn.Linear):
    """A router's matmul that comes out otherwise each time, as one on a card may in its last bits, but by far more."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return Drift.apply(x, self.weight, self.calls)


class Block(nn.Module):
    """The built-in mixture's layer, alone: its rotary table is made here."""

    def __init__(self, gate):
        super().__init__()
        sizes = DecoderSizes(layers=1, width=WIDTH, heads=2, kv_heads=1, hidden=48, vocabulary=16)
        inner = MoETransformerBlock(sizes, ExpertSizes(experts=EXPERTS, top_k=TOP_K, hidden=16))
        inner.moe.router.gate = gate(WIDTH, EXPERTS, bias=False)
        self.attention, self.moe = inner.attention, inner.moe
        self.attention_norm, self.ffn_norm = inner.attention_norm, inner.ffn_norm
        self.register_buffer("rope", rope_table(TOKENS, sizes.head_width))

    def forward(self, x):
        h = x + self.attention(self.attention_norm(x), self.rope)
        return h + self.moe(self.ffn_norm(h))


def model_and_input(gate=nn.Linear, layers=2):
    torch.manual_seed(0)
    model = Stack(*(Block(gate) for _ in range(layers)))
    return model, torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def restart(model):
    for module in model.modules():
        if isinstance(module, DriftingGate):
            module.calls = 0


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=Treatment.label)
def test_gradients_are_those_of_the_forward_although_the_router_drifts(treatment):
    model, x = model_and_input(DriftingGate)
    expected = gradients(model, x)
    restart(model)
    apply_plan(model, uniform(treatment))
    assert same(gradients(model, x), expected)


@IGNORE_TORCHS_OWN
@pytest.mark.parametrize("policy", ["full", "selective"])
def test_a_compiled_graph_keeps_logits_weights_and_indices(policy):
    knobs = {} if policy == "full" else KEEP_NOTHING

    def saved(save_routing):
        model, x = model_and_input(layers=1)
        treatment = Treatment(policy, save_routing=save_routing, **knobs)
        out = apply_plan(model, uniform(treatment, compile="layer"))(x.requires_grad_())
        return Counter((tuple(tensor.shape), tensor.dtype) for tensor in out.grad_fn.saved_tensors)

    assert saved(True) - saved(False) == Counter(
        [((TOKENS, EXPERTS), torch.float32), ((TOKENS, TOP_K), torch.float32), ((TOKENS, TOP_K), torch.int64)]
    )


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_unless_the_plan_says_otherwise(policy):
    knobs = {} if policy == "full" else KEEP_NOTHING
    model, x = model_and_input(DriftingGate)
    expected = gradients(model, x)
    restart(model)
    apply_plan(model, uniform(Treatment(policy, save_routing=False, **knobs)))
    with contextlib.suppress(CheckpointError):  # experts that get another number of tokens are found by their shapes
        assert not same(gradients(model, x), expected)


def test_a_filter_says_otherwise():
    model, x = model_and_input(DriftingGate, layers=1)
    expected = gradients(model, x)
    restart(model)
    apply_plan(model, uniform(Treatment("selective", filter_fqns=("moe.router.gate",))))
    found = gradients(model, x)
    # topk is kept all the same, so that the same experts run; only the scores' gradients are those of another matmul.
    assert not torch.equal(found["layers.0.moe.router.gate.weight"], expected["layers.0.moe.router.gate.weight"])
    assert torch.equal(found["layers.0.moe.experts.w2"], expected["layers.0.moe.experts.w2"])


@pytest.mark.parametrize("treatment", [Treatment("full"), Treatment("selective", **KEEP_NOTHING)], ids=Treatment.label)
def test_only_logits_weights_and_indices_are_kept(treatment):
    float_bytes, index_bytes = 4, 8
    model, x = model_and_input(layers=1)
    apply_plan(model, uniform(treatment))
    with_routing_bytes = kept_bytes(model, x)
    remove_plan(model)
    knobs = {} if treatment.policy == "full" else KEEP_NOTHING
    apply_plan(model, uniform(Treatment(treatment.policy, save_routing=False, **knobs)))
    kept_for_routing_bytes = TOKENS * (EXPERTS * float_bytes + TOP_K * (float_bytes + index_bytes))
    assert with_routing_bytes - kept_bytes(model, x) == kept_for_routing_bytes


def test_routers_that_write_over_their_scores():
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x).mul_(2).sub_(1)

    model, x = model_and_input(Scaled)
    expected = gradients(model, x)
    for treatment in (Treatment("full"), Treatment("full", wrap=PARTS), Treatment("selective", **KEEP_NOTHING)):
        apply_plan(model, uniform(treatment))
        assert same(gradients(model, x), expected)
        assert same(gradients(model, x), expected)
        remove_plan(model)


def test_two_forwards_before_their_backwards():
    model, x = model_and_input(DriftingGate)

    def step():
        restart(model)
        model.zero_grad()
        (model(x).sum() + model(x.flip(1)).square().sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = step()
    apply_plan(model, uniform(Treatment("full")))
    assert same(step(), expected)


def test_a_copy_routes_by_itself_and_no_hook_is_left():
    model, x = model_and_input(DriftingGate)
    expected = gradients(model, x)
    apply_plan(model, uniform(Treatment("full")))
    twin = copy.deepcopy(model)
    for one in (model, twin):
        restart(one)
        assert same(gradients(one, x), expected)
        remove_plan(one)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in one.modules())


def test_a_recomputation_that_chooses_more_often_is_refused():
    class MoreEachTime(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return sum(super(MoreEachTime, self).forward(x) for _ in range(self.calls)) / self.calls

    model, x = model_and_input(MoreEachTime, layers=1)
    apply_plan(model, uniform(Treatment("full", early_stop=False)))
    with pytest.raises(
        PlanError, match=r"save_routing: layers\.0 calls mm as number 2 .* where its forward called topk"
    ):
        model(x).sum().backward()


class Moe(nn.ModuleDict):
    """Chooses twice. Its router drifts if it is one by its name; called as `route`, or as a module of its own."""

    def __init__(self, router_name):
        gate = DriftingGate if router_name == "router" else nn.Linear
        super().__init__({router_name: gate(WIDTH, 4, bias=False), "experts": nn.Linear(WIDTH, WIDTH)})
        self.router_name = router_name

    def route(self, x):
        weights, chosen = self[self.router_name](x).topk(2)
        coarse, _ = (2 * weights).topk(1)
        return self.experts(x * coarse) * weights.sum(-1, keepdim=True) + chosen.sum(-1, keepdim=True)


class CalledMoe(nn.Module):
    def __init__(self, router_name):
        super().__init__()
        self.__dict__["inner"] = inner = Moe(router_name)
        for name, module in inner.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.inner.route(x)


class Nested(nn.Module):
    """A mixture in a list that has a shared expert beside it, which makes a mixture of the list as well."""

    def __init__(self, moe):
        super().__init__()
        self.ffn = nn.ModuleDict({"shared_expert": nn.Linear(WIDTH, WIDTH), "moe": moe})

    def forward(self, x):
        moe = self.ffn.moe
        return x + self.ffn.shared_expert(x) + (moe.route(x) if isinstance(moe, Moe) else moe(x))


@pytest.mark.parametrize("kind", [Moe, CalledMoe])
@pytest.mark.parametrize("router_name", ["router", "score"])
def test_mixtures_in_lists(kind, router_name):
    torch.manual_seed(0)
    model, x = Stack(Nested(kind(router_name))), torch.randn(6, WIDTH)
    expected = gradients(model, x)
    apply_plan(model, uniform(Treatment("full")))
    for _ in range(2):  # the second call looks at routers alone
        restart(model)
        assert same(gradients(model, x), expected)


def test_an_interrupted_router_leaves_no_mode_behind():
    class Interrupted(nn.Linear):
        def forward(self, x):
            raise KeyboardInterrupt

    model, x = model_and_input(Interrupted, layers=1)
    apply_plan(model, uniform(Treatment("full")))
    with pytest.raises(KeyboardInterrupt):
        model(x)
    assert _get_current_dispatch_mode() is None


def test_a_forward_that_ends_between_the_scores_and_the_choice_teaches_nothing():
    class FailsOnce(CalledMoe):
        failed = False

        def forward(self, x):
            scores = self.router(x)
            if not FailsOnce.failed:
                FailsOnce.failed = True
                raise torch.OutOfMemoryError("between the router and its topk")
            weights, chosen = scores.topk(2)
            return self.experts(x) * weights.sum(-1, keepdim=True) + chosen.sum(-1, keepdim=True)

    torch.manual_seed(0)
    moe = FailsOnce("router")
    model, x = Stack(Nested(moe)), torch.randn(6, WIDTH)
    FailsOnce.failed = True
    expected = gradients(model, x)
    FailsOnce.failed = False
    apply_plan(model, uniform(Treatment("full")))
    with pytest.raises(torch.OutOfMemoryError):
        gradients(model, x)
    restart(model)
    assert same(gradients(model, x), expected)


@pytest.mark.parametrize("mode", ["layer", "model"])
def test_the_compilers_own_policy_is_refused_where_experts_are_chosen(mode):
    model, _ = model_and_input(layers=1)
    half = Treatment("memory_budget", memory_budget=0.5)
    with pytest.raises(PlanError, match=r"memory_budget: layers\.0 chooses experts.* Set save_routing = false"):
        apply_plan(model, uniform(half, compile=mode))
    allowed = dataclasses.replace(half, save_routing=False)
    assert parse_plan(dump_plan(uniform(allowed, compile=mode))) == uniform(allowed, compile=mode)
    for treatment in (allowed, dataclasses.replace(half, memory_budget=1.0)):
        apply_plan(model, uniform(treatment, compile=mode))
        remove_plan(model)


def tree(*fqns):
    """A module with submodules of these names; `xs*` is a ModuleList of two."""
    root = nn.Module()
    for fqn in fqns:
        parent = root
        *above, last = fqn.split(".")
        for name in above:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        child = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]) if last.endswith("*") else nn.Module()
        parent.add_module(last.rstrip("*"), child)
    return root


@pytest.mark.parametrize(
    ("fqns", "below", "expected"),
    [
        # torchtitan
        (
            ("attention.wq", "moe.router.gate", "moe.experts", "moe.shared_experts"),
            ".",
            Routing(("moe",), ("moe.experts", "moe.shared_experts"), ("moe.router",)),
        ),
        (
            ("attention.wq", "moe.router.gate", "moe.experts", "moe.shared_experts"),
            "moe",
            Routing((".",), ("experts", "shared_experts"), ("router",)),
        ),
        (("attention.wq", "moe.router.gate", "moe.experts"), "moe.router", Routing((".",), (), (".",))),
        (("attention.wq", "moe.router.gate", "moe.experts"), "moe.router.gate", Routing((".",), (), (".",))),
        (("attention.wq", "moe.router.gate", "moe.experts"), "moe.experts", NO_ROUTING),
        (("attention.wq", "moe.router.gate", "moe.experts"), "attention", NO_ROUTING),
        # transformers: Qwen3-MoE, and a list of experts
        (("mlp.gate", "mlp.experts"), ".", Routing(("mlp",), ("mlp.experts",), ("mlp.gate",))),
        (("mlp.gate", "mlp.experts*"), "mlp", Routing((".",), ("experts.0", "experts.1"), ("gate",))),
        # a part of a mixture around its router
        (("moe.routing.router", "moe.experts"), "moe.routing", Routing(("router",), (), ("router",))),
        # a layer that is itself the mixture
        (("self_attn.q", "router.proj", "experts"), ".", Routing(("router",), (), ("router",))),
        # dense: gates of other kinds
        (("mlp.gate_proj", "mlp.up_proj"), ".", NO_ROUTING),
        (("attention.gate", "mlp.gate"), ".", NO_ROUTING),
    ],
)
def test_where_a_region_routes(fqns, below, expected):
    assert find_routing(tree(*fqns), below) == expected


def test_the_knob_in_toml_and_in_the_hash():
    """Plans from before the knob have kept their hash."""
    assert "save_routing" not in dump_plan(uniform(Treatment("full")))
    assert plan_hash(uniform(Treatment("full"), layers="layers.0-3")) == "5bcf07aeb930dbda"
    without = uniform(Treatment("full", save_routing=False))
    assert "save_routing = false" in dump_plan(without)
    assert parse_plan(dump_plan(without)) == without
    assert plan_hash(without) != plan_hash(uniform(Treatment("full")))
    assert plan_hash(Plan()) != plan_hash(without)
