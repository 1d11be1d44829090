"""What SAC keeps: by the every-nth rule, by op lists, by name; checked by counting what runs again in backward."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from actune.ac import apply_plan
from actune.ac.ops import default_save_ops, resolve_save_ops
from actune.errors import PlanError
from actune.plan import Plan, Treatment
from actune.targets import load_target
from tests.ac.models import Stack, same, stack, step, tokens, uniform


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def backward_ops(model, x):
    loss = model(x).square().mean()
    with Ops() as ops:
        loss.backward()
    return ops.counts


def run_again(treatment, *, build=stack, x=None):
    """Counts of ops that backward runs in excess of a model without AC."""
    x = tokens() if x is None else x
    plain, planned = build(), build()
    apply_plan(planned, uniform(treatment))
    assert same(step(planned, x), step(plain, x))
    return backward_ops(planned, x) - backward_ops(plain, x)


def one_layer():
    return stack(1)


def selective(nth=0, **knobs):
    return Treatment("selective", save_every_nth_mm=nth, early_stop=False, **knobs)


@pytest.mark.parametrize(("nth", "again"), [(0, 6), (1, 0), (2, 3), (3, 4), (7, 5)])
def test_every_nth_matmul(nth, again):
    """Six Linears without bias: wq, wk, wv, wo, w1, w2."""
    assert run_again(selective(nth), build=one_layer)["mm"] == again


def test_linears_with_bias_escape_the_rule():
    """w1 and w2 are addmm here: kept whatever the n, unless it is 0; wo is the fourth and last counted."""
    kept = run_again(selective(4), build=lambda: stack(1, bias=True))
    assert (kept["mm"], kept["addmm"]) == (3, 0)
    none = run_again(selective(0), build=lambda: stack(1, bias=True))
    assert (none["mm"], none["addmm"]) == (4, 2)


@pytest.mark.parametrize(
    ("knobs", "again"),
    [
        ({"filter_fqns": ("attention.wq",), "filter_by": "name"}, 1),
        ({"filter_fqns": ("attention.wq",)}, 4),  # wq, wk, wv, wo have one shape
        ({"filter_fqns": ("w1",), "filter_by": "name"}, 1),
        ({"filter_fqns": ("layers.0.feed_forward.w",), "filter_by": "name"}, 2),  # a substring of the whole FQN
        ({"filter_fqns": ("yers.0.attention.w", "ward.w2"), "filter_by": "name"}, 5),
    ],
)
def test_filters(knobs, again):
    assert run_again(selective(1, **knobs), build=one_layer)["mm"] == again


def test_a_filter_on_one_layer_leaves_the_others():
    treatment = selective(1, filter_fqns=("layers.1.attention.wq",), filter_by="name")
    assert run_again(treatment)["mm"] == 1


def test_save_ops_as_a_list_and_as_sets():
    none = run_again(selective(1, save_ops=()), build=one_layer)
    only_silu = run_again(selective(1, save_ops=("silu",)), build=one_layer)
    assert none["mm"] == only_silu["mm"] == 6
    assert (none["silu"], only_silu["silu"]) == (1, 0)
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert run_again(selective(1), build=one_layer)[attention] == 1  # torchtitan's list lacks it
    assert run_again(selective(1, save_ops=("default", "cpu_attention")), build=one_layer)[attention] == 0


def test_op_names():
    mm = torch.ops.aten.mm.default
    assert mm in resolve_save_ops(["mm"])
    assert torch.ops.aten.mm.out not in resolve_save_ops(["mm"])
    assert resolve_save_ops(["default"]) == default_save_ops() > {mm, torch.ops.aten.topk.default}
    assert torch.ops.aten._grouped_mm.default in resolve_save_ops(["grouped_mm"])
    assert torch.ops.aten._grouped_mm.default not in default_save_ops()
    assert resolve_save_ops(["_c10d_functional.all_to_all_single"]) == {
        torch.ops._c10d_functional.all_to_all_single.default
    }
    assert resolve_save_ops(["flex_attention"]) == {torch.ops.higher_order.flex_attention}
    with pytest.raises(PlanError, match=r"save_ops: 'no_such\.op' is no op of torch"):
        resolve_save_ops(["no_such.op"])


@pytest.mark.parametrize(
    ("save", "again"),
    [
        (("attention.wq::mm",), {"mm": 5}),
        (("attention.wq::mm", "feed_forward.w2::mm"), {"mm": 4}),
        (("feed_forward::silu",), {"mm": 6, "silu": 0}),
        ((".::add#1",), {"add": 1}),
        ((".::add#2",), {"add": 1}),
        ((".::add",), {"add": 0}),
        ((".::add#1", ".::add#2"), {"add": 0}),
    ],
)
def test_saved_by_name(save, again):
    found = run_again(selective(0, save=save), build=one_layer)
    assert {op: found[op] for op in again} == again


def test_names_are_below_the_region():
    treatment = selective(0, wrap=("attention", "feed_forward"), save=("wq::mm", "w2::mm"))
    found = run_again(treatment, build=one_layer)
    assert found["mm"] == 4


class Twice(nn.Module):
    """A layer that calls one of its modules twice."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 16, bias=False)
        self.v = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        return self.v(torch.tanh(self.w(torch.tanh(self.w(x)))))


@pytest.mark.parametrize(("save", "again"), [("w::mm#1", 2), ("w::mm#2", 2), ("w::mm", 1), ("v::mm", 2)])
def test_occurrences_of_a_module_called_twice(save, again):
    found = run_again(selective(0, save=(save,)), build=lambda: stack_of(Twice))
    assert found["mm"] == again


def stack_of(kind, count=1):
    torch.manual_seed(0)
    return Stack(*(kind() for _ in range(count)), nn.Identity())


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            "attention.wq::add",
            r"no op matched 'attention\.wq::add' when layers\.0 ran\. Ops that ran in 'attention\.wq': .*mm",
        ),
        ("attention.wq::mm#2", r"no op matched 'attention\.wq::mm#2' when layers\.0 ran \(or not as often"),
        (".::mm", r"no op matched '\.::mm'.* Ops that ran in '\.': add, mul\. Name one of them"),
    ],
)
def test_what_is_named_and_never_runs_is_an_error_after_the_first_forward(save, message):
    model = apply_plan(stack(), uniform(selective(0, save=(save,))))
    with pytest.raises(PlanError, match=message):
        model(tokens())


def test_one_of_two_numbers_is_not_enough():
    model = apply_plan(stack(), uniform(selective(0, save=(".::add#1", ".::add#9"))))
    with pytest.raises(PlanError, match=r"no op matched '\.::add#9'"):
        model(tokens())


def test_grouped_matmuls_of_a_mixture():
    """Field notes: torchtitan's list recomputes every expert's matmuls; with the set `grouped_mm` none is."""
    target = load_target("moe-tiny?batch=1&seq=32")
    target.model()
    batch = target.batch(0)

    def grouped(treatment):
        torch.manual_seed(0)
        model = target.model()
        if treatment is not None:
            apply_plan(model, Plan.from_treatments({f"layers.{i}": treatment for i in range(4)}))
        loss = target.loss(model, batch)
        with Ops() as ops:
            loss.backward()
        return ops.counts["_grouped_mm"]

    without_ac = grouped(None)
    assert without_ac == 3 * 3 * 2
    assert grouped(selective(2)) == without_ac + 3 * 3
    assert grouped(selective(2, save_ops=("default", "grouped_mm"))) == without_ac


def test_one_layer_object_called_twice_in_a_forward():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(stack(2).layers)

        def forward(self, x):
            for layer in [*self.layers, *self.layers]:
                x = layer(x)
            return x

    model, x = Again(), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(selective(2, save=("attention.wq::mm", ".::add#1"))))
    assert same(step(model, x), expected)
    assert same(step(model, x), expected)
