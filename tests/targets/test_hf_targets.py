from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from actune.errors import UsageError
from actune.profiler import discover
from actune.target_spec import parse_target_spec
from actune.targets import load_target, source_fingerprint
from actune.targets.hf_config import read_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "hf"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a target from a local config must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    ("config", "layer", "classes"),
    [("llama-tiny.json", "LlamaDecoderLayer", 1), ("qwen3-moe-tiny.json", "Qwen3MoeDecoderLayer", 2)],
)
def test_examples_end_to_end(config: str, layer: str, classes: int) -> None:
    target = load_target(f"hf:{EXAMPLES / config}?layers=3&batch=2&seq=32")
    torch.manual_seed(0)
    model = target.model()
    structure = discover(model, target.layer_fqns)
    assert structure.layer_fqns == tuple(f"model.layers.{i}" for i in range(3))
    assert len(structure.classes) == classes
    assert all(c.name.startswith(layer) and c.parts == ("self_attn", "mlp") for c in structure.classes)
    batch = target.batch(0)
    assert batch["input_ids"].shape == (2, 32)
    optimizer = target.optimizer(model)
    before = model.get_parameter("model.layers.1.self_attn.q_proj.weight").clone()
    loss = target.loss(model, batch)
    loss.backward()
    optimizer.step()
    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 0.5
    assert not torch.equal(before, model.get_parameter("model.layers.1.self_attn.q_proj.weight"))


def write(path: Path, **fields: Any) -> str:
    base = json.loads((EXAMPLES / "llama-tiny.json").read_text())
    path.write_text(json.dumps(base | fields))
    return f"hf:{path}"


def test_weights_come_from_the_global_seed() -> None:
    target = load_target(f"hf:{EXAMPLES / 'llama-tiny.json'}?layers=1")
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(target.model().get_parameter("lm_head.weight"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_neither_cache_nor_checkpointing_of_its_own(tmp_path: Path) -> None:
    model: Any = load_target(write(tmp_path / "c.json", gradient_checkpointing=True, num_hidden_layers=1)).model()
    assert model.training
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert model.config.use_cache is False


def test_the_dtype_is_the_configs(tmp_path: Path) -> None:
    model = load_target(write(tmp_path / "c.json", dtype="bfloat16", num_hidden_layers=1)).model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_lists_with_an_entry_per_layer_follow_the_number_of_layers(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    spec = write(tmp_path / "c.json", model_type="qwen3", head_dim=32, layer_types=kinds)
    fewer: Any = load_target(f"{spec}?layers=2").model()
    more: Any = load_target(f"{spec}?layers=6").model()
    assert fewer.config.layer_types == kinds[:2]
    assert len(more.config.layer_types) == 6


def test_layers_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps({"model_type": "gpt2", "n_layer": 4, "n_embd": 32, "n_head": 2, "vocab_size": 64}))
    model = load_target(f"hf:{path}?layers=2").model()
    assert discover(model).layer_fqns == ("transformer.h.0", "transformer.h.1")


def test_a_sequence_is_no_longer_than_the_model_takes(tmp_path: Path) -> None:
    spec = write(tmp_path / "c.json", max_position_embeddings=24)
    assert load_target(spec).batch(0)["labels"].shape == (4, 24)
    with pytest.raises(UsageError, match=r"seq=25 is more than .* at most 24"):
        load_target(f"{spec}?seq=25")


def test_positions_that_padding_takes_are_none_for_tokens(tmp_path: Path) -> None:
    fields = {"model_type": "roberta", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    (tmp_path / "c.json").write_text(json.dumps(fields | {"vocab_size": 64, "max_position_embeddings": 34}))
    target = load_target(f"hf:{tmp_path / 'c.json'}?batch=2")
    batch = target.batch(0)
    assert batch["labels"].shape == (2, 32)
    assert target.loss(target.model(), batch).isfinite()
    with pytest.raises(UsageError, match="Expected at most 32"):
        load_target(f"hf:{tmp_path / 'c.json'}?seq=33")
    (tmp_path / "c.json").write_text(json.dumps({"model_type": "esm", "vocab_size": 33, "max_position_embeddings": 34}))
    assert load_target(f"hf:{tmp_path / 'c.json'}").batch(0)["labels"].shape == (4, 34)


def test_no_layer_is_skipped_at_random(tmp_path: Path) -> None:
    fields = {"model_type": "m2m_100", "encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "vocab_size": 64}
    (tmp_path / "c.json").write_text(json.dumps(fields | {"encoder_layerdrop": 0.5}))
    model: Any = load_target(f"hf:{tmp_path / 'c.json'}").model()
    assert (model.config.encoder_layerdrop, model.config.decoder_layerdrop) == (0.0, 0.0)
    assert model.model.encoder.layerdrop == 0.0


def test_lists_for_each_layer_whose_name_does_not_say_so(tmp_path: Path) -> None:
    fields = {"model_type": "gemma3n_text", "num_hidden_layers": 4, "intermediate_size": [32, 32, 48, 48]}
    (tmp_path / "c.json").write_text(json.dumps(fields | {"activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0]}))
    config = read_config(parse_target_spec(f"hf:{tmp_path / 'c.json'}?layers=2"))
    assert (config.num_hidden_layers, config.intermediate_size) == (2, [32, 32])


def test_layers_that_a_config_can_not_have_blame_the_option(tmp_path: Path) -> None:
    fields = {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    (tmp_path / "c.json").write_text(json.dumps(fields))
    load_target(f"hf:{tmp_path / 'c.json'}")
    with pytest.raises(UsageError, match=r"layers=2 can't be applied .*'gpt_neo', which then says: .*Change"):
        load_target(f"hf:{tmp_path / 'c.json'}?layers=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'a JSON object with a "model_type"'),
        ("{}", 'a JSON object with a "model_type"'),
        ('{"model_type": "lama"}', r"knows no model type 'lama'\. Did you mean .*llama"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "is no valid config of 'llama'"),
        ('{"model_type": "detr"}', "no model for the model type 'detr' that could be trained here"),
        ('{"model_type": "speech_to_text"}', "what speech the model type 'speech_to_text' takes is not known"),
        (
            '{"model_type": "qwen2_audio", "architectures": ["Qwen2AudioForConditionalGeneration"]}',
            "no model for the model type 'qwen2_audio' that could be trained here",
        ),
        ('{"model_type": "pix2struct"}', "the type 'pix2struct' does not run on text alone"),
        ('{"model_type": "idefics"}', "the type 'idefics' does not run on text alone"),
    ],
)
def test_what_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_target(f"hf:{tmp_path / 'c.json'}")


ARCHITECTURES = Path(__file__).parents[2] / "benchmarks" / "architectures"


def model_of(path: Path, folder: Path, **fields: Any) -> Any:
    """The model of a config with other fields; None removes one."""
    changed = json.loads(path.read_text()) | fields
    (folder / "c.json").write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    return load_target(f"hf:{folder / 'c.json'}?batch=2").model()


@pytest.mark.parametrize(
    ("config", "fields", "built"),
    [
        ("bert", {}, "BertForMaskedLM"),
        ("bert", {"architectures": ["BertLMHeadModel"], "is_decoder": True}, "BertLMHeadModel"),
        ("bert", {"architectures": ["BertModel"]}, "BertForMaskedLM"),
        ("bert", {"architectures": None, "is_decoder": True}, "BertLMHeadModel"),
        ("bart", {"architectures": None}, "BartForConditionalGeneration"),
        ("bart", {"architectures": ["BartForCausalLM"]}, "BartForCausalLM"),
        ("whisper", {"architectures": None}, "WhisperForConditionalGeneration"),
        ("vit", {"architectures": ["ViTModel"]}, "ViTForImageClassification"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
    ],
)
def test_the_class_is_the_named_one_or_the_first_of_the_tasks(
    tmp_path: Path, config: str, fields: dict[str, Any], built: str
) -> None:
    assert type(model_of(ARCHITECTURES / f"{config}.json", tmp_path, **fields)).__name__ == built


@pytest.mark.parametrize(
    ("config", "stacks"),
    [
        ("t5", ("encoder.block", "decoder.block")),
        ("bart", ("model.encoder.layers", "model.decoder.layers")),
        ("whisper", ("model.encoder.layers", "model.decoder.layers")),
        ("gemma3-multimodal", ("model.language_model.layers",)),
        ("jamba", ("model.layers",)),
    ],
)
def test_layers_are_those_of_every_trained_stack(config: str, stacks: tuple[str, ...]) -> None:
    model = load_target(f"hf:{ARCHITECTURES / config}.json?layers=2").model()
    assert [len(model.get_submodule(stack)) for stack in stacks] == [2] * len(stacks)  # type: ignore[arg-type]


def test_batches_fit_the_task() -> None:
    def shapes(config: str, options: str = "batch=3&seq=16") -> dict[str, tuple[int, ...]]:
        batch = load_target(f"hf:{ARCHITECTURES / config}.json?{options}").batch(0)
        return {name: tuple(tensor.shape) for name, tensor in batch.items()}

    tokens = (3, 16)
    assert shapes("t5") == {"input_ids": tokens, "decoder_input_ids": tokens, "labels": tokens}
    assert shapes("whisper") == {"input_features": (3, 16, 64), "decoder_input_ids": tokens, "labels": tokens}
    assert shapes("vit", "batch=3") == {"pixel_values": (3, 3, 32, 32), "labels": (3,)}
    assert shapes("bert") == {"input_ids": tokens, "labels": tokens}
    decoded = load_target(f"hf:{ARCHITECTURES / 't5'}.json").batch(1)
    assert torch.equal(decoded["decoder_input_ids"][:, 1:], decoded["labels"][:, :-1])
    assert decoded["decoder_input_ids"][:, 0].eq(0).all()
    labels = load_target(f"hf:{ARCHITECTURES / 'bert'}.json").batch(0)["labels"]
    assert 0 < labels.ne(-100).float().mean() < 0.3


def test_no_token_stands_for_a_picture() -> None:
    target = load_target(f"hf:{ARCHITECTURES / 'gemma3-multimodal'}.json?batch=64&seq=64")
    assert target.batch(0)["input_ids"].max() < 253


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("vit", "seq=8", "seq=8 means nothing for image classification"),
        ("swin", "layers=2", "has its layers in stages, so layers=2 can't be applied"),
        ("whisper", "seq=65", "Expected at most 64"),
    ],
)
def test_options_that_do_not_fit_the_task(config: str, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_target(f"hf:{ARCHITECTURES / config}.json?{options}")


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    text = f"hf:{EXAMPLES / 'llama-tiny.json'}"
    with pytest.raises(UsageError, match=r"pip install 'actune\[hf\]'"):
        load_target(text)
    with pytest.raises(UsageError, match=r"pip install 'actune\[hf\]'"):
        source_fingerprint(parse_target_spec(text))
