"""Models of torchtitan's registry as targets. Its import takes seconds, so few tests run much in a process."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from actune.cost.model import CostModel
from actune.cost.survey import begin_survey, extend_survey
from actune.errors import UsageError
from actune.measure import Workload, compare_gradients, measure_plan, open_device, profile_plan
from actune.plan import NO_AC, Plan, Treatment, dump_plan
from actune.profiler import discover
from actune.records import CompareGradients, MeasurePlan
from actune.target_spec import parse_target_spec
from actune.targets import load_target, source_fingerprint

pytest.importorskip("torchtitan")

pytestmark = pytest.mark.filterwarnings(
    # Its routers ask for autocast to float32, which a CPU does not have.
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)

FULL, SAC = Treatment("full"), Treatment("selective")
EXPERTS = Treatment("selective", save_every_nth_mm=1, save_ops=("default", "grouped_mm", "cpu_attention"))
MENU = (NO_AC, FULL, SAC, EXPERTS)

# Options, then the names of each class's layers and its parts.
FLAVORS = {
    "llama3/debugmodel": ("?layers=3&seq=128&batch=4", {"Llama3TransformerBlock": ((0, 1, 2), "feed_forward")}),
    "deepseek_v3/debugmodel": (
        "?layers=2&seq=128&batch=4",
        {"DeepSeekV3TransformerBlock": ((0,), "feed_forward"), "DeepSeekV3TransformerBlock#2": ((1,), "moe")},
    ),
    "qwen3/debugmodel": ("?layers=2&seq=128&batch=2", {"Qwen3TransformerBlock": ((0, 1), "feed_forward")}),
}


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_garbage() -> None:
    """Peaks need a collection before each step, which takes longer the more modules are loaded."""
    for family in ("llama3", "deepseek_v3", "qwen3"):
        importlib.import_module(f"torchtitan.models.{family}")
    gc.collect()
    gc.freeze()


def toml(plan: Plan) -> str:
    return dump_plan(plan, with_provenance=False)


def plans_of(layer_fqns: tuple[str, ...]) -> list[Plan]:
    def given(*treatments: Treatment) -> Plan:
        return Plan.from_treatments(dict(zip(layer_fqns, treatments, strict=False)))

    return [Plan(), given(FULL, FULL, FULL), given(SAC, SAC, SAC), given(FULL, EXPERTS, NO_AC)]


@pytest.mark.parametrize("flavor", FLAVORS)
def test_layers_gradients_and_peaks(flavor: str) -> None:
    options, expected = FLAVORS[flavor]
    workload = Workload(f"torchtitan:{flavor}{options}", open_device("cpu"), seed=0)
    structure = workload.structure
    assert {c.name: (c.layer_fqns, c.parts) for c in structure.classes} == {
        name: (tuple(f"layers.{i}" for i in layers), ("attention", part)) for name, (layers, part) in expected.items()
    }
    plans = plans_of(structure.layer_fqns)
    for plan in plans[1:]:
        report = compare_gradients(workload, CompareGradients(toml(plan), toml(Plan())))
        assert (report.equal, report.bitwise) == (True, True), f"{plan.describe()}: {report.worst}"

    run = partial(profile_plan, workload)
    profile = begin_survey(structure, run, timed_steps=1)
    model = CostModel(extend_survey(profile, dict.fromkeys(structure.layer_fqns, MENU), run, timed_steps=1))
    predicted = [model.predict(plan, structure.layer_fqns).peak_bytes for plan in plans]
    requests = [MeasurePlan(toml(plan), None, None, timed_pairs=0) for plan in plans]
    assert predicted == [measure_plan(workload, request).measurement.peak_bytes for request in requests]
    # Else the peak is that of the optimizer, and nothing was compared.
    assert len(set(predicted)) >= 3


def test_the_loss_is_cross_entropy_of_the_next_token() -> None:
    target = load_target("torchtitan:llama3/debugmodel?layers=1&seq=16&batch=2")
    torch.manual_seed(0)
    model: Any = open_device("cpu").build(target)
    batch = target.batch(3)
    assert all(torch.equal(batch[name], again) for name, again in target.batch(3).items())
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
    loss = target.loss(model, batch)
    logits = model.lm_head(model(batch["tokens"], positions=batch["positions"]))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(expected, model.layers["0"].attention.wo.weight)
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(model.layers["0"].attention.wo.weight.grad, gradient)


def test_what_is_built_depends_on_the_device() -> None:
    target = load_target("torchtitan:llama3/debugmodel?layers=1&seq=32")

    def attention_on(device: str) -> str:
        model: Any = target.model(torch.device(device))
        return type(model.layers["0"].attention.inner_attention).__name__

    assert attention_on("cuda") == "FlexAttention"
    assert attention_on("cpu") == "ScaledDotProductAttention"
    assert attention_on("cuda") == "FlexAttention"


def test_tables_of_positions_have_the_length_of_a_sequence() -> None:
    model: Any = load_target("torchtitan:deepseek_v3/debugmodel?layers=2&seq=32").model()
    assert model.layers["1"].attention.rope.cache.shape[0] == 32


def test_the_dtype_is_torchtitans_training_dtype() -> None:
    target = load_target("torchtitan:deepseek_v3/debugmodel?layers=2&seq=32&batch=1&dtype=bfloat16")
    model = open_device("cpu").build(target)
    # Routers' biases are float32 in any case, as torchtitan has them.
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    target.loss(model, target.batch(0)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_real_size_on_a_simulated_card() -> None:
    workload = Workload("torchtitan:deepseek_v3/16B?layers=2&seq=512&batch=1", open_device("sim:h100"), seed=0)
    peaks = [
        measure_plan(workload, MeasurePlan(toml(plan), None, None, timed_pairs=0)).measurement.allocated_bytes
        for plan in plans_of(workload.structure.layer_fqns)[:2]
    ]
    # Weights, gradients and AdamW's two states in float32 at least, and activations beside them.
    assert all(4 < (peak or 0) / workload.parameter_bytes < 5 for peak in peaks)
    assert peaks[0] >= peaks[1]


def test_text_alone_for_models_that_also_see() -> None:
    model = load_target("torchtitan:kimi_k2_7/debugmodel?layers=2&seq=16").model()
    assert discover(model).layer_fqns == ("layers.0", "layers.1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lama3/debugmodel", r"no family 'lama3'\. Did you mean llama3.* Expected one of deepseek_v3, .*qwen3"),
        ("llama3/debug", r"llama3 has no flavor 'debug'\. Did you mean debugmodel\? Expected one of debugmodel, 1B"),
        ("llama3/debugmodel?layers=7", "layers=7 is more than llama3/debugmodel has. Expected at most 6"),
        ("deepseek_v3/debugmodel?seq=16392", "seq=16392 is more than the positions .* at most 16384"),
        ("llama3/debugmodel?seq=100", "seq=100 is no multiple of 8.* such as 104"),
        ("qwen3_5/debugmodel", r"needs the module 'fla', .*install it with: pip install flash-linear-attention"),
        ("flux/flux-debug", "flux is no language model"),
        ("llama3/debugmodel?dtype=float16", "dtype=float16 is none that torchtitan trains in.*float32, bfloat16"),
        ("llama3/debugmodel?dtyp=bfloat16", r"unknown option 'dtyp'\. Did you mean 'dtype'\?"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_target(f"torchtitan:{text}")


def test_attention_that_a_cpu_would_compute_otherwise_is_refused() -> None:
    target = load_target("torchtitan:gpt_oss/debugmodel?layers=2")
    with pytest.raises(UsageError, match=r"needs kernels that only CUDA has.*--device cuda, or one of .*llama3"):
        target.model()
    assert len(list(target.model(torch.device("cuda")).get_submodule("layers").children())) == 2


@pytest.mark.parametrize("installed", [None, "0.2.2"])
def test_without_torchtitan_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, installed: str | None
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr("actune.targets.torchtitan.version", version)
    text = "torchtitan:llama3/debugmodel"
    for load in (load_target, lambda text: source_fingerprint(parse_target_spec(text))):
        with pytest.raises(UsageError, match=r"torchtitan .*is.* installed.*pip install 'actune\[torchtitan\]'"):
            load(text)


def test_fingerprints_tell_models_and_options_apart() -> None:
    texts = ("llama3/debugmodel", "llama3/8B", "qwen3/8B", "llama3/8B?layers=2")
    assert len({source_fingerprint(parse_target_spec(f"torchtitan:{text}")) for text in texts}) == 4


def test_two_ranks_shard_it_as_torchtitan_does(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.targets.torchtitan_ranks", str(rank), str(tmp_path / "store")],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, err = rank.communicate(timeout=150)
        assert rank.returncode == 0, err


def test_a_search_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actune", "search", "--target", "torchtitan:llama3/debugmodel?layers=2&seq=128"]
    command += ["--budget", "95%", "--space", "presets.yaml", "--trials", "2", "--study", "titan", "--json"]
    (tmp_path / "presets.yaml").write_text("schema: 1\npresets: [full, none]\nmenu: [{policy: none}, {policy: full}]\n")
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    best = json.loads(ended.stdout)["best"]
    assert best["gradients_equal"] is True
    assert best["peak_bytes"] == best["predicted_peak_bytes"]
