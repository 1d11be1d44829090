"""Ops from the cache against the same ops through FakeTensorMode itself."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from actune.measure import Workload, open_device, profile_plan
from actune.measure.simulated.op_cache import OpCache
from actune.plan import Plan, Treatment, dump_plan
from actune.step_profile import ProfilePlan

aten = torch.ops.aten


@pytest.fixture
def mode():
    with FakeTensorMode() as mode:
        yield mode


@pytest.fixture
def asked():
    return []


@pytest.fixture
def cache(mode, asked):
    def op_time_s(op, args, kwargs, output):
        asked.append(op)
        return float(len(asked))

    return OpCache(mode, op_time_s)


def form(tensor):
    return (
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.storage_offset(),
        tensor.untyped_storage().nbytes(),
    )


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, FakeTensor):
        assert form(one) == form(other)
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


def x(*shape, **kwargs):
    return torch.empty(*shape, **kwargs)


CASES = [
    (aten.mm.default, lambda: (x(4, 8), x(8, 2)), 1),
    (aten.mm.default, lambda: (x(8, 4).t(), x(8, 2)), 1),
    (aten.add.Tensor, lambda: (x(4, 1), x(1, 8)), 1),
    (aten.sum.dim_IntList, lambda: (x(4, 8), [1], True), 1),
    (aten.view.default, lambda: (x(4, 8), [32]), 0),
    (aten.slice.Tensor, lambda: (x(4, 8), 1, 2, 6), 0),
    (aten.split.Tensor, lambda: (x(4, 8), 2), 0),
    (aten.detach.default, lambda: (x(4),), 0),
    (aten.topk.default, lambda: (x(4, 8), 2), 2),
    (aten.native_dropout.default, lambda: (x(4, 8), 0.5, True), 2),
    (aten.arange.default, lambda: (7,), 1),
    (aten._to_copy.default, lambda: (x(4, 8),), 1),
    (
        aten._scaled_dot_product_flash_attention.default,
        lambda: tuple(x(1, 2, 16, 8, dtype=torch.bfloat16) for _ in range(3)),
        5,
    ),
]


@pytest.mark.parametrize(("op", "make", "made"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_a_hit_returns_what_the_op_returns(cache, asked, op, make, made):
    expected = op(*make())
    first, second = cache.run(op, make(), {}), cache.run(op, make(), {})
    assert asked == [op]
    assert first.time_s == second.time_s == 1.0
    same(first.output, expected)
    same(second.output, expected)
    assert len(second.made) == made


def test_views_share_the_storage_of_what_they_are_given(cache):
    for _ in range(2):
        tensor = x(4, 8)
        view = cache.run(aten.view.default, (tensor, [32]), {}).output
        assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        parts = cache.run(aten.split.Tensor, (view, 8), {}).output
        assert {part.untyped_storage()._cdata for part in parts} == {tensor.untyped_storage()._cdata}
        assert [part.storage_offset() for part in parts] == [0, 8, 16, 24]


def test_what_is_written_to_is_returned_itself(cache, asked):
    for _ in range(2):
        tensor = x(4)
        ran = cache.run(aten.add_.Tensor, (tensor, x(4)), {})
        assert ran.output is tensor
    assert ran.made == []
    assert len(asked) == 1


def test_sizes_layouts_types_and_options_are_told_apart(cache, asked):
    wide = x(4, 8)
    for args in [(wide, 1), (wide, 1.0), (wide, True), (x(8, 4), 1), (x(8, 4).t(), 1), (x(4, 8, dtype=torch.half), 1)]:
        same(cache.run(aten.add.Scalar, args, {}).output, aten.add.Scalar(*args))
    same(
        cache.run(aten._to_copy.default, (wide,), {"dtype": torch.half}).output,
        aten._to_copy.default(wide, dtype=torch.half),
    )
    same(
        cache.run(aten._to_copy.default, (wide,), {"dtype": torch.double}).output,
        aten._to_copy.default(wide, dtype=torch.double),
    )
    assert len(asked) == 8


def test_ops_that_change_sizes_run_each_time(cache, asked):
    for _ in range(2):
        tensor = x(4, 8)
        cache.run(aten.t_.default, (tensor,), {})
        assert tensor.shape == (8, 4)
    assert len(asked) == 2


def test_values_that_are_known_stay_known(cache):
    for _ in range(2):
        number = torch.tensor(3.0)
        assert number.constant is not None
        assert cache.run(aten.mul.Tensor, (number, 2), {}).output.item() == 6.0


@pytest.mark.parametrize("spec", ["dense-tiny?layers=2", "moe-tiny?layers=2"])
def test_a_step_is_the_same_without_it(spec, monkeypatch):
    plan = dump_plan(Plan.from_treatments({"layers.0": Treatment("full"), "layers.1": Treatment("selective")}))
    request = ProfilePlan(plan, with_optimizer=True, timed_steps=1)

    def profiled():
        return profile_plan(Workload(spec, open_device("sim:tiny"), seed=0), request)

    cached = profiled()
    monkeypatch.setattr(OpCache, "run", OpCache._run)
    assert profiled() == cached


@pytest.mark.parametrize("columns", [8, 6])
@pytest.mark.parametrize("dims", [(2, 3), (2, 2), (3, 3)])
def test_grouped_matmuls_in_float32(cache, dims, columns):
    """Fake tensors refuse them; a real CPU says what they return."""

    def arguments():
        left = torch.ones((16, 8) if dims[0] == 2 else (4, 16, 8))
        right = torch.ones((columns, 8) if dims[1] == 2 else (4, columns, 8)).transpose(-2, -1)
        return left, right, None if dims == (3, 3) else torch.arange(2, 10, 2, dtype=torch.int32)

    with _disable_current_modes():
        expected = aten._grouped_mm.default(*arguments())
    output = cache.run(aten._grouped_mm.default, arguments(), {}).output
    assert (output.shape, output.dtype, output.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert output.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
