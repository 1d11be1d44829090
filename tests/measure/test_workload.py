"""A target brought to life: meta models, refusals, and the seed."""

import pytest
import torch

from actune.errors import PlanError, TargetError, UsageError
from actune.measure import Workload, is_out_of_memory, measure_rounds, open_device
from actune.measure.compiled_code import frames_compiled
from actune.plan import Plan, Treatment, dump_plan
from actune.records import MeasureRounds
from tests.ac.models import IGNORE_TORCHS_OWN, uniform


def workload(name, seed=0):
    return Workload(f"tests.measure.targets:{name}", open_device("cpu"), seed=seed)


def test_a_model_on_the_meta_device_is_initialised():
    model = workload("OnMeta").model
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert all(parameter.isfinite().all() and parameter.std() > 0 for parameter in model.parameters())
    assert model.tied.weight is model.head.weight
    assert model.table.tolist() == [0.0, 1.0, 2.0]
    again = workload("OnMeta").model
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(model.head.weight, workload("OnMeta", seed=1).model.head.weight)


def test_a_meta_buffer_that_nobody_fills_is_refused():
    with pytest.raises(TargetError, match=r"Model has no reset_parameters\(\)\. Give the model a method init_weights"):
        workload("OnMetaWithoutInit")


@pytest.mark.parametrize("text", ["tpu", "cuda:x", "cpu:0", ""])
def test_unknown_devices(text):
    with pytest.raises(UsageError, match=rf"device '{text}' is not known\. Expected cpu, cuda, cuda:N"):
        open_device(text)


def test_fingerprints_follow_structure_and_seed():
    assert workload("Plain").fingerprint == workload("Plain").fingerprint
    assert workload("Plain").fingerprint != workload("Plain", seed=1).fingerprint
    assert workload("Plain").fingerprint != workload("OnMeta").fingerprint


def test_a_plan_that_does_not_fit_raises_and_is_not_kept():
    loaded = workload("Plain")
    bad = uniform(Treatment("full", wrap=("w9",)))
    for _ in range(2):
        with pytest.raises(PlanError, match="w9"), loaded.under(bad):
            pass
    with loaded.under(uniform(Treatment("full"))):
        loaded.forward_backward(0)


def test_a_target_whose_model_checkpoints_by_itself_is_refused():
    with pytest.raises(TargetError, match=r"ChecksItself': layers\.1 has gradient_checkpointing on"):
        workload("ChecksItself")


@IGNORE_TORCHS_OWN
def test_what_the_model_compiles_itself_is_compiled_anew_for_each_trial():
    """Else only the plan that came first would be told how it ran."""
    loaded = workload("CompilesAPiece")
    for _ in range(2):
        before = frames_compiled()
        with loaded.under(Plan()):
            loaded.forward_backward(0)
            loaded.forward_backward(0)
        assert frames_compiled() == before + 1
        loaded.forget_plans()


def test_rounds_give_each_plan_a_sample_per_round():
    plans = (dump_plan(Plan()), dump_plan(uniform(Treatment("full"))), dump_plan(uniform(Treatment("selective"))))
    loaded = workload("Plain")
    measured = measure_rounds(loaded, MeasureRounds(plans, rounds=4))
    assert [len(samples) for samples in measured.samples] == [4, 4, 4]
    assert "_actune_application" not in vars(loaded.model)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: tried 9"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
