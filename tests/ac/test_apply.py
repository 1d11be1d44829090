"""Applying and removing: names, state, copies, and nothing left behind."""

import copy
import io
import pickle

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from actune.ac import Application, apply_plan, remove_plan
from actune.ac.regions import Region
from actune.errors import PlanError
from actune.plan import Plan, Rule, Treatment
from tests.ac.models import IGNORE_TORCHS_OWN, SAVE_MEAN, Block, Stack, same, stack, step, tokens, uniform

PLANS = [
    pytest.param(uniform(Treatment("full")), id="full"),
    pytest.param(uniform(Treatment("full", wrap=("attention", "feed_forward"))), id="parts"),
    pytest.param(uniform(Treatment("selective")), id="sac"),
    pytest.param(uniform(SAVE_MEAN), id="by-name"),
]


SAVE_MEAN_PLAN = uniform(SAVE_MEAN)


def names(model):
    return (
        [name for name, _ in model.named_parameters()],
        [name for name, _ in model.named_buffers()],
        [(name, module) for name, module in model.named_modules()],
        list(model.state_dict()),
        list(model.modules()),
    )


def hooks(model):
    return [
        (name, attribute, list(value))
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "hooks" in attribute and value
    ]


@pytest.mark.parametrize("plan", PLANS)
def test_names_and_gradients_stay_and_removal_leaves_nothing(plan):
    model, x = stack(), tokens()
    before, hooks_before, dict_before = names(model), hooks(model), set(vars(model))
    expected = step(model, x)
    assert apply_plan(model, plan) is model
    assert any(isinstance(region, Region) for layer in model.layers for region in (layer, layer.attention))
    assert names(model) == before
    assert model.get_submodule("layers.1.attention.wq") is dict(before[2])["layers.1.attention.wq"]
    assert same(step(model, x), expected)
    remove_plan(model)
    assert names(model) == before
    assert [type(layer) for layer in model.layers] == [Block] * 3
    assert type(model.layers[0].attention).__name__ == "Attention"
    assert hooks(model) == hooks_before
    assert set(vars(model)) == dict_before
    assert same(step(model, x), expected)


@pytest.mark.parametrize("plan", PLANS)
def test_state_dict_loads_between_models_with_and_without_a_plan(plan):
    plain, planned = stack(), apply_plan(stack(), plan)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    planned.load_state_dict(plain.state_dict())
    assert same(step(planned, tokens()), step(plain, tokens()))
    fresh = stack()
    fresh.load_state_dict(planned.state_dict())
    assert same(step(fresh, tokens()), step(plain, tokens()))


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_an_optimizer_from_before_or_after_trains_the_same_weights(optimizer_first):
    plain, planned = stack(), stack()
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    if optimizer_first:
        optimizer = torch.optim.SGD(planned.parameters(), lr=0.1)
        apply_plan(planned, uniform(Treatment("selective")))
    else:
        apply_plan(planned, uniform(Treatment("selective")))
        optimizer = torch.optim.SGD(planned.parameters(), lr=0.1)
    for _ in range(2):
        step(plain, tokens())
        reference.step()
        step(planned, tokens())
        optimizer.step()
    assert same(planned.state_dict(), plain.state_dict())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_the_plan_and_shares_nothing(plan, how):
    model, x = apply_plan(stack(), plan), tokens()
    expected = step(model, x)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert same(step(twin, x), expected)
    assert same(step(model, x), expected)
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
    remove_plan(twin)
    assert hooks(twin) == hooks(stack())
    assert same(step(twin, x), expected)
    assert any(isinstance(r, Region) for layer in model.layers for r in (layer, layer.attention))


def test_a_copy_follows_its_own_running_modules():
    """The copy's rules by name must not ask where the original is."""
    model = apply_plan(stack(), SAVE_MEAN_PLAN)
    step(model, tokens())
    twin = copy.deepcopy(model)
    memory = twin.layers[0]._region_memory
    memory.first_call_done, memory.unmatched = False, {("attention_norm", "mean", None)}
    step(twin, tokens())
    assert memory.unmatched == set()


@IGNORE_TORCHS_OWN
def test_a_compiled_model_refuses_to_be_copied():
    model = apply_plan(stack(), uniform(Treatment("full"), compile="layer"))
    with pytest.raises(PlanError, match=r'compile: a model under a plan with compile = "layer" can\'t be copied'):
        copy.deepcopy(model)
    with pytest.raises(PlanError, match=r"actune\.remove_plan\(model\) first"):
        torch.save(model, io.BytesIO())


def test_a_model_that_checkpoints_by_itself_is_refused():
    model, plan = stack(2), uniform(Treatment("full"))
    model.layers[1].gradient_checkpointing = True
    with pytest.raises(PlanError, match=r"layers\.1 has gradient_checkpointing on.*gradient_checkpointing_disable"):
        apply_plan(model, plan)
    model.layers[1].gradient_checkpointing = False
    apply_plan(model, plan)
    remove_plan(model)
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    with pytest.raises(PlanError, match=r"layers\.0 is wrapped by PyTorch's checkpoint_wrapper"):
        apply_plan(model, plan)


def test_twice_and_without_are_errors():
    model = stack()
    with pytest.raises(PlanError, match="no plan is applied to this model"):
        remove_plan(model)
    apply_plan(model, uniform(Treatment("full")))
    with pytest.raises(PlanError, match=r"applied to this model already\. Call actune\.remove_plan\(model\) first"):
        apply_plan(model, Plan())
    remove_plan(model)
    with pytest.raises(PlanError, match="no plan is applied"):
        remove_plan(model)
    apply_plan(model, Plan())


def test_plans_take_turns_and_only_the_attached_one_has_hooks():
    model, x = stack(), tokens()
    clean = hooks(model)
    expected = step(model, x)
    by_name = Application(model, SAVE_MEAN_PLAN)
    full = Application(model, uniform(Treatment("full")))
    assert hooks(model) == clean
    for application in (by_name, full, by_name, full):
        application.attach()
        with pytest.raises(PlanError, match="already"):
            by_name.attach()
        assert (hooks(model) != clean) == (application is by_name)
        assert same(step(model, x), expected)
        application.detach()
        assert hooks(model) == clean


def test_a_shared_layer_is_wrapped_wherever_it_stands():
    block = Block()
    model, x = Stack(block, Block(), block), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(SAVE_MEAN))
    assert model.layers[0] is model.layers[2]
    assert all(isinstance(layer, Region) for layer in model.layers)
    assert same(step(model, x), expected)
    remove_plan(model)
    assert model.layers[0] is model.layers[2] is block


def test_attributes_are_written_where_they_are_read():
    model = stack()
    model.layers[0].number = 1
    apply_plan(model, uniform(Treatment("selective")))
    model.layers[0].number = 2
    model.layers[0].scale = torch.full((), 3.0)
    model.eval()
    remove_plan(model)
    assert model.layers[0].number == 2
    assert dict(model.named_buffers())["layers.0.scale"] == 3
    assert not model.layers[0].training


def test_dicts_and_several_stacks():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.ModuleDict({f"block-{i}": Block() for i in range(2)})
            self.decoder = nn.ModuleList([Block() for _ in range(2)])

        def forward(self, x):
            for layer in [*self.encoder.values(), *self.decoder]:
                x = layer(x)
            return x

    model, x = Two(), tokens()
    expected = step(model, x)
    plan = Plan((Rule(("encoder.block-1",), Treatment("full")), Rule(("decoder.0-1",), Treatment("selective"))))
    apply_plan(model, plan)
    wrapped = [isinstance(layer, Region) for layer in [*model.encoder.values(), *model.decoder]]
    assert wrapped == [False, True, True, True]
    assert same(step(model, x), expected)


@pytest.mark.parametrize(
    ("treatment", "message"),
    [
        (Treatment("full", wrap=("attentoin",)), r"wrap: layers\.0 has no module 'attentoin'\. Did you mean attention"),
        (
            Treatment("selective", filter_fqns=("nothing",)),
            r"filter_fqns: 'nothing' matches no Linear in layers\.0, layers\.1\. The Linears are: attention",
        ),
        (
            Treatment("selective", filter_fqns=("attention",)),
            r"filter_fqns: 'attention' matches layers\.0\.attention_norm, which is a DecomposedNorm, no nn\.Linear",
        ),
        (Treatment("selective", save=("attention.wx::mm",)), r"save: 'attention\.wx::mm' names the module 'attention"),
        (Treatment("selective", save=("attention.wq::nn",)), r"save: 'nn' is no op of torch"),
        (Treatment("selective", save_ops=("topk2",)), r"save_ops: 'topk2' is no op of torch .*Did you mean topk"),
        (Treatment("selective", save_ops=("add_",)), r"save_ops: 'add_' only writes in place"),
    ],
)
def test_a_plan_that_does_not_fit_leaves_the_model_as_it_was(treatment, message):
    model = stack()
    before, hooks_before, dict_before = names(model), hooks(model), set(vars(model))
    # The first rule fits and is made before the second fails.
    plan = Plan((Rule(("layers.2",), SAVE_MEAN), Rule(("layers.*",), treatment)))
    with pytest.raises(PlanError, match=message):
        apply_plan(model, plan)
    assert names(model) == before
    assert hooks(model) == hooks_before
    assert set(vars(model)) == dict_before


def test_calls_by_keyword_and_structured_outputs():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, *, x, more=None):
            out = self.a(x) + self.b(x)  # each Linear twice
            return {"out": self.a(out) + self.b(out), "extra": (out, more)}

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, x):
            for layer in self.layers:
                result = layer(x=x, more="as it is")
                assert result["extra"][1] == "as it is"
                x = result["out"] + result["extra"][0]
            return x

    model, x = Keywords(), tokens(4)
    expected = step(model, x)
    for save in ("a::mm#2", "b::mm", ".::add#1"):
        apply_plan(model, uniform(Treatment("selective", save_every_nth_mm=0, save=(save,))))
        assert same(step(model, x), expected)
        remove_plan(model)


@pytest.mark.parametrize("plan", PLANS)
def test_forward_without_gradients(plan):
    model, x = stack(dropout=0.5), tokens()
    model.eval()
    with torch.no_grad():
        expected = model(x)
        apply_plan(model, plan)
        assert torch.equal(model(x), expected)
    model.train()
    planned = step(model, x)
    remove_plan(model)
    assert same(planned, step(model, x))


@IGNORE_TORCHS_OWN
def test_nothing_process_wide_changes():
    def state():
        return (
            torch._dynamo.config.get_config_copy(),
            torch._functorch.config.get_config_copy(),
            torch._inductor.config.get_config_copy(),
            {
                n: len(v)
                for n, v in vars(nn.modules.module).items()
                if n.startswith("_global") and hasattr(v, "__len__")
            },
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
        )

    model = stack()
    before = state()
    for plan in (
        uniform(SAVE_MEAN),
        uniform(Treatment("full"), compile="inside"),
        uniform(Treatment("selective"), compile="layer"),
        uniform(Treatment("memory_budget", memory_budget=0.5), compile="model"),
    ):
        apply_plan(model, plan)
        assert state() == before
        remove_plan(model)
        assert state() == before
