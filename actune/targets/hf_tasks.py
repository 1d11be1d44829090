"""What a config of transformers is trained for: which class is built from it, and which batch that is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from actune.errors import UsageError
from actune.targets.hf_config import configs_within
from actune.targets.tokens import random_tokens

IGNORED_LABEL = -100
"""The label of what counts nothing in the losses of transformers."""

LABELLED_SHARE = 0.15
"""Of the tokens of a masked LM, as in BERT (Devlin et al. 2018, section 3.1)."""

_NOT_WITHOUT_PICTURES = ("idefics",)
"""Types whose first input is text, but whose forward raises where there are no pictures."""

_PADS_BEFORE = (
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types whose positions start after that of the padding, so that so many fewer are left for tokens."""

_OF_THE_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id")

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """A way to train a model.

    Attributes:
        name: for people.
        auto_class: the class of transformers that builds the model.
        mapping: the library's own mapping from types of configs to what that class builds.
        batch: of a config, a number of examples, a number of tokens and a step: what the model is called with.
        longest: the most tokens that a config allows, None if there is no limit, 0 if there are no tokens.
    """

    name: str
    auto_class: str
    mapping: str
    batch: Callable[[Any, int, int, int], Batch]
    longest: Callable[[Any], int | None]

    def is_for(self, transformers: ModuleType, config: Any) -> bool:
        """Whether the class can be built from the config."""
        return type(config) in getattr(transformers, self.mapping)

    def class_names(self, transformers: ModuleType, config: Any) -> list[str]:
        """The names of the classes that can be built from the config; more than one for few types."""
        found = getattr(transformers, self.mapping)[type(config)]
        return [one.__name__ for one in (found if isinstance(found, tuple) else (found,))]

    def needs_more(self, transformers: ModuleType, config: Any) -> bool:
        """Whether what the class takes first is no text."""
        found = getattr(transformers, self.mapping)[type(config)]
        return any(one.main_input_name != "input_ids" for one in (found if isinstance(found, tuple) else (found,)))


def choose_task(transformers: ModuleType, config: Any, *, target: str) -> Task:
    """The task of a config: the first in the order of TASKS that has the class named in the config's `architectures`.

    Where it names none of their classes (some files have none, or the bare model's), the first task that is for the
    config's type. But the first two are for configs with `is_encoder_decoder` alone, and a type that has both a causal
    and a masked LM, as BERT's, is causal where the config says `is_decoder`.

    Args:
        transformers: the library.
        config: from `read_config`.
        target: what to call the target in messages.

    Raises:
        UsageError: no task is for the config.
    """
    decodes = config.is_encoder_decoder
    fitting = [
        task for task in TASKS if task.is_for(transformers, config) and (decodes or task not in (SEQ_TO_SEQ, SPEECH))
    ]
    named = config.architectures or ()
    for task in fitting:
        if any(name in named for name in task.class_names(transformers, config)):
            return _checked(task, transformers, config, target)
    if MASKED_LM in fitting and CAUSAL_LM in fitting:
        fitting.remove(MASKED_LM if decodes or getattr(config, "is_decoder", False) else CAUSAL_LM)
    if not fitting:
        names = ", ".join(task.name for task in TASKS)
        raise UsageError(
            f"target '{target}': transformers has no model for the model type '{config.model_type}' that could be "
            f"trained here. Expected a config of one of: {names}; for another model write a Target of your own."
        )
    return _checked(fitting[0], transformers, config, target)


def _checked(task: Task, transformers: ModuleType, config: Any, target: str) -> Task:
    if task is SPEECH and not (hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions")):
        raise UsageError(
            f"target '{target}': what speech the model type '{config.model_type}' takes is not known. Expected a "
            "config with num_mel_bins and max_source_positions, as Whisper's; for another model write a Target of "
            "your own."
        )
    if task is IMAGE_AND_TEXT and (config.model_type in _NOT_WITHOUT_PICTURES or task.needs_more(transformers, config)):
        raise UsageError(
            f"target '{target}': a model of the type '{config.model_type}' does not run on text alone, and which "
            "pictures it takes is not known here. Write a Target of your own."
        )
    return task


def _tokens(config: Any, batch: int, seq: int, step: int) -> Tensor:
    """Random tokens; none that stands for a picture or a sound, where the model takes those too."""
    text = config.get_text_config()
    vocabulary: int = text.vocab_size
    tokens = random_tokens(step, batch=batch, seq=seq, vocabulary=vocabulary)
    if not config.sub_configs:
        return tokens
    special = {
        value
        for each in configs_within(config)
        for name, value in vars(each).items()
        if name.endswith(("_token_id", "_token_index")) and name not in _OF_THE_TEXT and isinstance(value, int)
    }
    plain = next((token for token in range(vocabulary) if token not in special), 0)
    return tokens.masked_fill(torch.isin(tokens, torch.tensor(sorted(special))), plain)


def _causal(config: Any, batch: int, seq: int, step: int) -> Batch:
    """The model itself shifts the labels."""
    tokens = _tokens(config, batch, seq, step)
    return {"input_ids": tokens, "labels": tokens}


def _masked(config: Any, batch: int, seq: int, step: int) -> Batch:
    tokens = _tokens(config, batch, seq, step)
    labelled = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(step)) < LABELLED_SHARE
    labelled[:, 0] = True  # a loss over no label is no number
    return {"input_ids": tokens, "labels": tokens.masked_fill(~labelled, IGNORED_LABEL)}


def _decoded(config: Any, batch: int, seq: int, step: int) -> Batch:
    """The labels, and before each what the decoder is given: the label before, or what a sequence starts with."""
    vocabulary = config.get_text_config(decoder=True).vocab_size
    labels = random_tokens(step + 1, batch=batch, seq=seq, vocabulary=vocabulary)
    start = next(
        (
            token
            for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")
            if isinstance(token := getattr(config, name, None), int) and 0 <= token < vocabulary
        ),
        0,
    )
    return {"decoder_input_ids": torch.cat([torch.full((batch, 1), start), labels[:, :-1]], dim=1), "labels": labels}


def _seq_to_seq(config: Any, batch: int, seq: int, step: int) -> Batch:
    vocabulary = getattr(config.get_text_config(encoder=True), "vocab_size", None)
    if vocabulary is None:  # a config that holds one of an encoder and one of a decoder
        vocabulary = config.encoder.vocab_size
    source = random_tokens(step, batch=batch, seq=seq, vocabulary=vocabulary)
    return {"input_ids": source, **_decoded(config, batch, seq, step)}


def _speech(config: Any, batch: int, seq: int, step: int) -> Batch:
    """As much speech as the encoder has positions for, after its convolutions have halved the number of frames."""
    frames = 2 * config.max_source_positions
    features = torch.randn(batch, config.num_mel_bins, frames, generator=torch.Generator().manual_seed(step))
    return {"input_features": _in_dtype(config, features), **_decoded(config, batch, seq, step)}


def _image(config: Any, batch: int, seq: int, step: int) -> Batch:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randn(batch, getattr(vision, "num_channels", 3), height, width, generator=generator)
    labels = torch.randint(config.num_labels, (batch,), generator=generator)
    return {"pixel_values": _in_dtype(config, pixels), "labels": labels}


def _in_dtype(config: Any, tensor: Tensor) -> Tensor:
    return tensor if config.dtype is None else tensor.to(config.dtype)


def _longest_text(config: Any) -> int | None:
    text = config.get_text_config()
    longest: int | None = getattr(text, "max_position_embeddings", None)
    padding: int | None = text.pad_token_id
    if longest is None or padding is None or text.model_type not in _PADS_BEFORE:
        return longest
    return longest - padding - 1


def _longest_decoded(config: Any) -> int | None:
    longest: int | None = getattr(config, "max_target_positions", None)
    return longest


def _no_text(config: Any) -> int:
    return 0


SEQ_TO_SEQ = Task(
    "encoder-decoder",
    "AutoModelForSeq2SeqLM",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    _seq_to_seq,
    _longest_text,
)
SPEECH = Task(
    "speech recognition", "AutoModelForSpeechSeq2Seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", _speech, _longest_decoded
)
CAUSAL_LM = Task("causal LM", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING", _causal, _longest_text)
MASKED_LM = Task("masked LM", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING", _masked, _longest_text)
IMAGE_CLASSIFICATION = Task(
    "image classification",
    "AutoModelForImageClassification",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    _image,
    _no_text,
)
IMAGE_AND_TEXT = Task(
    "image and text (text alone)",
    "AutoModelForImageTextToText",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    _causal,
    _longest_text,
)
TASKS = (SEQ_TO_SEQ, SPEECH, CAUSAL_LM, MASKED_LM, IMAGE_CLASSIFICATION, IMAGE_AND_TEXT)
