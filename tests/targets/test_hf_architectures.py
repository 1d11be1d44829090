"""Architectures of transformers: layers found, gradients as without AC to the last bit, peaks as predicted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, Architecture, plans_of
from torch import Tensor

from actune.cost.model import CostModel
from actune.cost.survey import begin_survey, extend_survey
from actune.measure import Workload, measure_plan, open_device, profile_plan
from actune.measure.tracing import trace_layers
from actune.op_trace import TraceLayers
from actune.plan import Plan, dump_plan
from actune.records import MeasurePlan
from actune.step_profile import PlanProfiled, ProfilePlan

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

# Of what discovery must find: the layers of each class, in the model's order.
LAYERS = {
    "llama": [4],
    "qwen3": [4],
    "qwen3-moe": [1, 3],
    "mixtral": [4],
    "deepseek-v3": [1, 3],
    "gpt-oss": [2, 2],
    "gemma3": [4, 2],
    "gpt-neox": [4],
    "opt": [4],
    "bert": [4],
    "t5": [1, 2, 1, 2],
    "whisper": [3, 3],
    "vit": [4],
    "mamba": [4],
    "mamba2": [4],
}


def loss_and_gradients(workload: Workload, plan: Plan) -> dict[str, Tensor]:
    workload.restart()
    with workload.under(plan):
        found = {"loss": workload.forward_backward(0)}
    found |= {name: p.grad.clone() for name, p in workload.model.named_parameters() if p.grad is not None}
    workload.restart()
    return found


def model_of(workload: Workload, plans: dict[str, Plan]) -> CostModel:
    fqns = workload.structure.layer_fqns
    menus = {fqn: list(dict.fromkeys(plan.resolve(fqns)[fqn] for plan in plans.values())) for fqn in fqns}

    def run(request: ProfilePlan) -> PlanProfiled:
        return profile_plan(workload, replace(request, settle=False))  # times don't matter here

    return CostModel(extend_survey(begin_survey(workload.structure, run, timed_steps=0), menus, run, timed_steps=0))


# Near relatives of others, which the benchmark runs too: what is left out here takes a third of the time.
_RELATIVES = {"mixtral-loop", "gemma3-multimodal", "gpt2", "falcon", "bart", "swin", "jamba"}
# More where activations are small beside what the optimizer takes, whose step would have every plan's peak.
_EXAMPLES = {"deepseek-v3": 5, "vit": 16}
EXAMINED = [architecture for architecture in ARCHITECTURES if architecture.config not in _RELATIVES]


@pytest.mark.parametrize("architecture", EXAMINED, ids=lambda one: one.config)
def test_plans_keep_gradients_and_have_the_predicted_peak(architecture: Architecture) -> None:
    examples = _EXAMPLES.get(architecture.config, 2)
    tokens = None if architecture.tokens is None else 32
    workload = Workload(replace(architecture, tokens=tokens, examples=examples).spec, open_device("cpu"), seed=0)
    structure = workload.structure
    assert [len(layer_class.layer_fqns) for layer_class in structure.classes] == LAYERS[architecture.config]
    plans = plans_of(workload.model, structure)
    model = model_of(workload, plans)
    peaks = []
    for name, plan in plans.items():
        measured = measure_plan(workload, MeasurePlan(dump_plan(plan), None, None, timed_pairs=0)).measurement
        assert measured.peak_bytes is not None, measured.message
        assert model.predict(plan, structure.layer_fqns).peak_bytes == measured.peak_bytes, name
        peaks.append(measured.peak_bytes)
    # Else the peak is that of the optimizer, and nothing was compared.
    assert len(set(peaks)) >= 3
    # After the peaks, as what is compared here would count as live.
    expected = loss_and_gradients(workload, plans["none"])
    for name, plan in plans.items():
        found = loss_and_gradients(workload, plan)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == [], name


def test_a_tower_that_is_not_called_is_not_traced() -> None:
    spec = next(one for one in ARCHITECTURES if one.config == "gemma3-multimodal").spec
    workload = Workload(spec, open_device("cpu"), seed=0)
    traced = trace_layers(workload, TraceLayers(dump_plan(Plan())))
    assert [trace.class_name for trace in traced.layers] == ["Gemma3DecoderLayer", "Gemma3DecoderLayer#2"]
    assert workload.structure.classes[0].name == "SiglipEncoderLayer"


def test_the_documents_table_has_the_same_architectures() -> None:
    table = DOCUMENT.read_text(encoding="utf-8").partition("<!-- table")[2].partition("<!-- end of the table")[0]
    rows = re.findall(r"^\| ([^|]+) \| `", table, re.MULTILINE)
    assert rows == [architecture.name for architecture in ARCHITECTURES]
