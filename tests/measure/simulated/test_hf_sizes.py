"""Models of transformers on simulated cards: as they train on a card, and at their real sizes."""

from pathlib import Path

import pytest

from actune.op_trace import TraceLayers
from actune.plan import Plan, Treatment, dump_plan
from actune.records import Failed, LoadTarget
from actune.step_profile import ProfilePlan
from actune.worker import Worker

pytest.importorskip("transformers")
CONFIGS = Path(__file__).parents[3] / "examples" / "hf"


def loaded(config, device="sim:h100", **options):
    worker = Worker(lambda: None)
    spec = f"hf:{CONFIGS / config}.json?" + "&".join(f"{key}={value}" for key, value in options.items())
    reply = worker.answer(LoadTarget(spec, device, seed=0))
    assert not isinstance(reply, Failed), reply
    return worker, reply.target


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("llama3-8b", 8.03e9),  # of the model cards and reports that the configs name
        ("llama3-70b", 70.6e9),
        ("qwen3-30b-a3b", 30.5e9),
        ("deepseek-v3-16b", 15.7e9),
    ],
)
def test_real_sizes_have_their_published_number_of_parameters(config, parameters):
    device = "sim:mi300x"  # the one with room for all of them
    _, target = loaded(config, device, batch=1, seq=64)
    assert target.parameter_bytes / 2 == pytest.approx(parameters, rel=5e-3)


def test_deepseek_v3():
    """671B; one layer of each kind tells the rest: 3 dense ones, and 58 with experts."""
    reply = Worker(lambda: None).answer(
        LoadTarget(f"hf:{CONFIGS / 'deepseek-v3-671b'}.json?batch=1&seq=64", "sim:h200", seed=0, world_size=256)
    )
    assert reply.target.parameter_bytes / 2 == pytest.approx(671e9, rel=5e-3)
    assert [len(layers.layer_fqns) for layers in reply.target.structure.classes] == [3, 58]


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ("llama3-8b", "_scaled_dot_product_flash_attention"),
        ("qwen3-30b-a3b", "_scaled_dot_product_flash_attention"),
        ("deepseek-v3-16b", "_scaled_dot_product_efficient_attention"),  # its queries are wider than its values
    ],
)
def test_attention_is_the_cards_and_has_no_mask(config, attention):
    worker, _ = loaded(config, layers=2, batch=1, seq=1024)
    traces = worker.answer(TraceLayers(dump_plan(Plan()), batches=1)).layers
    for trace in traces:
        assert [op.op_name for op in trace.ops if "attention" in op.op_name] == [attention, f"{attention}_backward"]
        # No tensor has a row for each pair of tokens, for each head.
        heads = 16
        assert all(out.storage_bytes < heads * 1024**2 * 4 for op in trace.forward for out in op.outputs if op.flops)
    if "llama" not in config:
        assert any(op.op_name == "_grouped_mm" for op in traces[-1].ops)


def test_memory_of_a_layer_of_llama_3_8b():
    """What a layer leaves behind, in bfloat16, worked out by hand from transformers' code."""
    tokens, d, kv, h, heads = 8192, 4096, 1024, 14336, 32
    worker, _ = loaded("llama3-8b", layers=2, batch=1, seq=tokens)
    request = ProfilePlan(dump_plan(Plan()), with_optimizer=False, timed_steps=0)
    slots = worker.answer(request).steady.slots
    (first, _) = (slot for slot in slots if slot.kind == "forward")
    norm = 4 * d + 4 + 2 * d + 2 * d  # the input in float32, its scale, what is normalised, and that weighted
    attention = 2 * d + 2 * kv + 2 * kv + 2 * d + 4 * heads  # rotated queries, rotated keys, values, output, logsumexp
    feed_forward = 4 * 2 * h  # gate, its activation, up, their product
    output = 2 * d
    random_state = 2 * 512  # two small tensors of the attention kernel, a block each
    assert first.delta_bytes == tokens * (2 * norm + attention + feed_forward + output) + random_state
    full = dump_plan(Plan.from_treatments(dict.fromkeys(("model.layers.0", "model.layers.1"), Treatment("full"))))
    slots = worker.answer(ProfilePlan(full, with_optimizer=False, timed_steps=0)).steady.slots
    assert [slot.delta_bytes for slot in slots if slot.kind == "forward"] == [tokens * 2 * d] * 2
