"""What generated modules ask for when they run: the plan for a model or a pipeline stage."""

import pytest
from torch import nn

from actune.errors import PlanError
from actune.export.stage import leave_compile, plan_for_stage
from actune.plan import Treatment, dump_plan
from tests.export.models import MIXED, SIX_LAYERS, plan_of, stack_of

ALL = SIX_LAYERS.layer_fqns


def test_whole_model_gets_the_whole_plan() -> None:
    plan, layer_fqns = plan_for_stage(stack_of(range(6)), dump_plan(MIXED), ALL)
    assert plan == MIXED.canonical_for(ALL)
    assert layer_fqns == ALL


def test_stage_gets_what_is_for_its_layers() -> None:
    plan, layer_fqns = plan_for_stage(stack_of(range(1, 4), stage=True), dump_plan(MIXED), ALL)
    assert layer_fqns == ("layers.1", "layers.2", "layers.3")
    assert plan == plan_of(
        ("layers.1", Treatment("full")), ("layers.3", Treatment("selective", wrap=("attention",)))
    ).canonical_for(layer_fqns)


def test_stage_without_layers_gets_nothing() -> None:
    plan, layer_fqns = plan_for_stage(stack_of(range(0), stage=True), dump_plan(MIXED), ALL)
    assert (plan.rules, layer_fqns) == ((), ())


def test_compile_is_kept() -> None:
    plan, _ = plan_for_stage(stack_of(range(6)), dump_plan(plan_of(compile="layer")), ALL)
    assert plan.compile == "layer"


@pytest.mark.parametrize(("layers", "stage"), [(range(5), False), (range(7), False), (range(5, 9), True)])
def test_another_model_is_an_error(layers: range, stage: bool) -> None:
    here = f"layers.{layers.start}-{layers.stop - 1}"
    with pytest.raises(PlanError, match=f"made for a model with layers.0-5; this model has {here}. Search and export"):
        plan_for_stage(stack_of(layers, stage=stage), dump_plan(MIXED), ALL)


def test_leave_compile_takes_only_the_compile_off() -> None:
    model = stack_of(range(2))
    for layer in model.get_submodule("layers").children():
        layer.compile(backend="eager")
        assert layer._compiled_call_impl is not None
    leave_compile(model, ("layers.0",))
    first, second = model.get_submodule("layers").children()
    assert isinstance(first, nn.ModuleDict)
    assert first._compiled_call_impl is None
    assert second._compiled_call_impl is not None
