"""The two traps of SAC: ops that write to what is kept, and ops that draw random numbers."""

import pytest
import torch
from torch import nn

from actune.ac import apply_plan, remove_plan
from actune.errors import PlanError
from actune.plan import Treatment
from tests.ac.models import SAVE_MEAN, Stack, same, stack, step, tokens, uniform


def selective(*save, **knobs):
    return Treatment("selective", save_every_nth_mm=0, save=save, **knobs)


def test_a_kept_output_and_the_write_to_it_are_one():
    """Recomputing the add_ on the kept mean would add the epsilon twice (field notes: a 21% error)."""
    model, x = stack(), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(SAVE_MEAN))
    for _ in range(3):
        assert same(step(model, x), expected)


class ReadThenWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 16, bias=False)
        self.v = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        kept = self.w(x)
        read = 1 + kept  # an op of which backward needs nothing
        kept.mul_(2)
        return self.v(kept + read.cos())


class WrittenThenRead(ReadThenWritten):
    def forward(self, x):
        kept = self.w(x)
        kept.view(-1).mul_(2)  # through a view
        return self.v(kept.sin().cos() + kept)


def layers(kind):
    torch.manual_seed(0)
    return Stack(kind(), kind())


def test_a_kept_output_read_and_then_written_is_refused():
    model = apply_plan(layers(ReadThenWritten), uniform(selective("w::mm")))
    with pytest.raises(
        PlanError, match=r"save: the output of mm can't be kept: add reads it and then mul_ writes over"
    ):
        model(tokens())


def test_the_same_write_is_fine_where_nothing_is_kept_or_the_reader_is_kept_too():
    for save in ((), ("w::mm", ".::add#1")):
        model, x = layers(ReadThenWritten), tokens()
        expected = step(model, x)
        apply_plan(model, uniform(selective(*save)))
        assert same(step(model, x), expected)


def test_a_write_through_a_view():
    model, x = layers(WrittenThenRead), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(selective("w::mm")))
    for _ in range(2):
        assert same(step(model, x), expected)


def test_a_write_after_the_region_is_still_refused_by_torch():
    class Keeps(WrittenThenRead):
        def forward(self, x):
            kept = self.w(x)
            return kept, self.v(kept.sin().cos())

    class After(Stack):
        def forward(self, x):
            for layer in self.layers:
                kept, out = layer(x)
                x = out + kept.mul_(2)
            return x

    model = After(Keeps(), Keeps())
    apply_plan(model, uniform(selective("w::mm")))
    loss = model(tokens().flatten(0, 1)).square().mean()
    with pytest.raises(RuntimeError, match="has been mutated"):
        loss.backward()


DROPOUTS = [
    Treatment("full"),
    Treatment("selective"),
    Treatment("selective", save_every_nth_mm=1, save_ops=("default", "cpu_attention")),
    selective("drop1::mul"),
    selective("drop2::mul", "drop2::empty_like"),  # the mask of the last draw
    Treatment("full", wrap=("attention", "drop1")),
    Treatment("selective", early_stop=False),
]


@pytest.mark.parametrize("treatment", DROPOUTS, ids=lambda treatment: treatment.label())
def test_dropout_draws_the_same_masks(treatment):
    """On a CPU nn.Dropout is empty_like, bernoulli_, div_, mul."""
    model, x = stack(dropout=0.3, attention_dropout=0.2), tokens()
    expected = step(model, x)
    assert not torch.equal(step(model, x, seed=8)["out"], expected["out"])
    apply_plan(model, uniform(treatment))
    assert same(step(model, x), expected)


class Draws(ReadThenWritten):
    """Two draws that return something new, and one in between that is of no use to backward."""

    def forward(self, x):
        first, _ = torch.native_dropout(self.w(x), 0.5, True)
        noise = torch.rand_like(first)
        second, _ = torch.native_dropout(self.v(first.sin() + noise), 0.5, True)
        return second.cos()


@pytest.mark.parametrize(
    "save", [(), (".::native_dropout#1",), (".::native_dropout#2",), (".::native_dropout",), (".::rand_like",)]
)
def test_one_draw_of_several_kept(save):
    """What is drawn after a kept draw is kept too, or the recomputation would draw it from the kept one's numbers."""
    model, x = layers(Draws), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(selective(*save)))
    assert same(step(model, x), expected)


def test_without_the_forwards_random_numbers_masks_differ():
    """preserve_rng_state = false is the user's word that nothing is drawn; the other tests here depend on it."""
    model, x = stack(dropout=0.3), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(Treatment("full", preserve_rng_state=False)))
    assert not same(step(model, x), expected)


@pytest.mark.parametrize("save", ["drop1::empty_like", "drop1::empty_like#1"])
def test_a_draw_in_place_after_a_kept_draw_is_refused(save):
    """The mask of drop1 is kept, so drop2's bernoulli_ would draw drop1's numbers.

    It can't be kept either: no cached output stands in for a write that its caller waits for.
    """
    model, x = stack(dropout=0.3), tokens()
    expected = step(model, x)
    apply_plan(model, uniform(selective(save)))
    with pytest.raises(PlanError, match=r"save: bernoulli_ draws random numbers in place .* Leave random ops out"):
        model(x)
    remove_plan(model)
    apply_plan(model, uniform(selective()))
    assert same(step(model, x), expected)


class DividesItsWeights(nn.Module):
    """A router as Mixtral's: the sum of the weights that topk chose is read, and then they are divided in place."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 16, bias=False)
        self.v = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        weights, chosen = self.w(x).softmax(-1).topk(4)
        weights /= weights.sum(-1, keepdim=True)
        return x + self.v(x.gather(-1, chosen) @ torch.ones(4, 16) * weights.sum(-1, keepdim=True).sin())


@pytest.mark.parametrize("treatment", [Treatment("selective"), selective(".::topk")], ids=Treatment.label)
def test_what_a_router_chose_is_kept_as_it_was_before_it_is_written_to(treatment):
    model, x = layers(DividesItsWeights), torch.randn(2, 16, requires_grad=True)
    expected = step(model, x)
    apply_plan(model, uniform(treatment))
    for _ in range(3):
        assert same(step(model, x), expected)
