"""Causal language models from a Hugging Face config file, with random weights. Nothing is fetched from the hub."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from actune.errors import UsageError
from actune.target_spec import TargetSpec
from actune.targets.defaults import DEFAULT_BATCH, DEFAULT_SEQ
from actune.targets.tokens import random_tokens


class HfTarget:
    """A model of transformers and a batch of random tokens that are their own labels."""

    def __init__(self, config: Any, *, batch: int, seq: int) -> None:
        """Takes a `PretrainedConfig` of a causal language model, and the shape (batch, seq) of the tokens."""
        self.config = config
        self._shape = (batch, seq)

    def model(self) -> nn.Module:
        """A new model on the CPU, in the config's dtype; weights from torch's global generator."""
        model: nn.Module = _transformers().AutoModelForCausalLM.from_config(self.config)
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """`input_ids` and `labels`, int64 of shape (batch, seq); the model itself shifts the labels."""
        batch, seq = self._shape
        tokens = random_tokens(step, batch=batch, seq=seq, vocabulary=self.config.vocab_size)
        return {"input_ids": tokens, "labels": tokens}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss, a scalar."""
        with _no_packed_sequences() if isinstance(batch["input_ids"], FakeTensor) else nullcontext():
            loss: Tensor = model(**batch).loss
        return loss


@contextmanager
def _no_packed_sequences() -> Iterator[None]:
    """Within the block, transformers takes each row of a batch for one sequence, as the target's batches are.

    It reads that from the positions. Where tensors have no values it can't, and to be safe it would give every layer
    a mask of all pairs of tokens, and with it another attention kernel than the one that trains.
    """
    from transformers import masking_utils

    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


def hf_target(spec: TargetSpec) -> HfTarget:
    """The target of a spec of the family `hf`; 4 sequences of 256 tokens (or of the most that the config allows).

    Raises:
        UsageError: transformers is not installed, the file is no config of a causal language model that it knows, or
            an option does not fit it.
    """
    transformers = _transformers(spec.text)
    fields = _read(spec)
    # Both would make a step other than a plain training step: a cache of keys and values, and checkpointing that is
    # not the plan's.
    fields.pop("gradient_checkpointing", None)
    fields["use_cache"] = False
    config = _config(transformers, spec, fields)
    layers = spec.size("layers")
    if layers is not None:
        config = _config(transformers, spec, _with_layers(spec, config, fields, layers))
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"target '{spec.text}': transformers has no causal language model for the model type "
            f"'{config.model_type}'. Expected a config of a decoder, such as llama or qwen3_moe; for another model "
            "write a Target of your own."
        )
    longest = getattr(config, "max_position_embeddings", None)
    seq = spec.size("seq")
    if seq is not None and longest is not None and seq > longest:
        raise UsageError(
            f"target '{spec.text}': seq={seq} is more than the config's max_position_embeddings. Expected at most "
            f"{longest}."
        )
    if seq is None:
        seq = DEFAULT_SEQ if longest is None else min(DEFAULT_SEQ, longest)
    return HfTarget(config, batch=spec.size("batch") or DEFAULT_BATCH, seq=seq)


def transformers_version() -> str:
    """The installed version.

    Raises:
        UsageError: transformers is not installed.
    """
    installed: str = _transformers().__version__
    return installed


def _transformers(target: str = "hf:") -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UsageError(
            f"target '{target}': Hugging Face configs need the package transformers, which is not installed. "
            "Install it with: pip install 'actune[hf]'"
        ) from None
    module: ModuleType = transformers
    return module


def _read(spec: TargetSpec) -> dict[str, Any]:
    try:
        fields = json.loads(Path(spec.location).read_bytes())
    except ValueError as error:
        raise UsageError(f"target '{spec.text}': '{spec.location}' is not JSON: {error}.") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise UsageError(
            f"target '{spec.text}': '{spec.location}' is no Hugging Face config. Expected a JSON object with a "
            '"model_type", such as {"model_type": "llama", …}.'
        )
    return fields


def _config(transformers: ModuleType, spec: TargetSpec, fields: dict[str, Any]) -> Any:
    model_type = fields["model_type"]
    known = transformers.CONFIG_MAPPING
    if model_type not in known:
        near = difflib.get_close_matches(model_type, list(known.keys()), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"target '{spec.text}': transformers {transformers.__version__} knows no model type '{model_type}'.{hint}"
        )
    try:
        return transformers.AutoConfig.for_model(**fields)
    except Exception as error:  # each config class checks its fields in its own way
        raise UsageError(
            f"target '{spec.text}': '{spec.location}' is no valid config of '{model_type}': "
            f"{type(error).__name__}: {error}"
        ) from error


def _with_layers(spec: TargetSpec, config: Any, fields: dict[str, Any], layers: int) -> dict[str, Any]:
    """The fields for another number of layers; what is listed for each layer is cut, or left to its default."""
    key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    before = getattr(config, key, None)
    if not isinstance(before, int):
        raise UsageError(
            f"target '{spec.text}': a config of '{config.model_type}' has no '{key}', so layers={layers} can't be "
            "applied. Change the number of layers in the file."
        )
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        if name.startswith("layer") and isinstance(value, list) and len(value) == before:
            if layers <= before:
                changed[name] = value[:layers]
        else:
            changed[name] = value
    changed[key] = layers
    if key != "num_hidden_layers":
        changed.pop("num_hidden_layers", None)
    return changed
