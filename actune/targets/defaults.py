"""What a target that brings only a model is given: tokens, next-token cross entropy, AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actune.errors import TargetError
from actune.targets.tokens import next_token_loss, random_tokens

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "block_size", "max_seq_len", "seq_len")
DEFAULT_BATCH = 4
DEFAULT_SEQ = 256

# No kernel's time or memory depends on it. A small one keeps a mixture's routing, and with it the experts' load, close
# to that of the first step through all the steps of a study, so that the first and the last trial do the same work.
DEFAULT_LEARNING_RATE = 1e-5


@dataclass(frozen=True, slots=True)
class TokenBatches:
    """Random tokens for a language model.

    Attributes:
        vocabulary: number of tokens that the model knows.
        batch: sequences in a batch.
        seq: tokens that the model sees; a batch has one more, the last one's target.
    """

    vocabulary: int
    batch: int
    seq: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive.")

    def tokens(self, step: int) -> Tensor:
        """Shape (batch, seq + 1), int64, on the CPU; the same for the same step."""
        return random_tokens(step, batch=self.batch, seq=self.seq + 1, vocabulary=self.vocabulary)


def token_batches(model: nn.Module, *, target: str) -> TokenBatches:
    """Batches that fit what the model says about itself: 4 sequences of 256 tokens, or of the longest that it takes.

    Args:
        model: says its vocabulary as `config.vocab_size`, as `vocab_size`, or by its one token embedding; and its
            longest sequence, where there is one, by one of the usual names, such as `config.max_position_embeddings`.
        target: what to call the target in messages.

    Raises:
        TargetError: the model does not say its vocabulary.
    """
    vocabulary = _said(model, ("vocab_size",)) or _embedding_size(model)
    if vocabulary is None:
        raise TargetError(
            f"target '{target}': it has no batch(), and the model does not say how many tokens it knows: "
            f"{type(model).__name__} has neither config.vocab_size nor vocab_size, and "
            f"{_count_of_embeddings(model)}. Add `def batch(self, step)` to the target, which returns the inputs of "
            "that step, or give the model one of those attributes."
        )
    longest = _said(model, _LENGTH_NAMES)
    return TokenBatches(vocabulary, DEFAULT_BATCH, DEFAULT_SEQ if longest is None else min(DEFAULT_SEQ, longest))


def default_loss(model: nn.Module, batch: Any, *, target: str) -> Tensor:
    """Cross entropy of each next token; or what the model itself returns as `.loss` for a batch that has labels.

    Args:
        model: takes tokens and returns logits (B, T, vocabulary), itself or as `.logits`; or takes the items of the
            batch as keywords and returns an object with `.loss`.
        batch: tokens, an integer tensor of shape (B, T + 1); or a mapping with the key `labels`.
        target: what to call the target in messages.

    Returns:
        a scalar.

    Raises:
        TargetError: the batch or the model's output has another form.
    """
    add_loss = "Add `def loss(self, model, batch)` to the target, which returns a scalar tensor."
    if isinstance(batch, Mapping) and "labels" in batch:
        loss = getattr(model(**batch), "loss", None)
        if not isinstance(loss, Tensor):
            raise TargetError(
                f"target '{target}': it has no loss(), and the model returns no `.loss` for a batch with labels. "
                f"{add_loss}"
            )
        return loss
    is_tokens = isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point() and batch.shape[1] > 1
    if not is_tokens:
        raise TargetError(
            f"target '{target}': it has no loss(), and its batch is {_describe(batch)}. The loss that is used then "
            "needs tokens, an integer tensor of shape (B, T + 1) with T at least 1, or a mapping with the key "
            f"'labels'. {add_loss}"
        )

    def check(logits: Any) -> None:
        if (
            not isinstance(logits, Tensor)
            or logits.ndim != 3
            or logits.shape[:2] != (batch.shape[0], batch.shape[1] - 1)
        ):
            raise TargetError(
                f"target '{target}': it has no loss(), and for tokens of shape ({batch.shape[0]}, "
                f"{batch.shape[1] - 1}) the model returns {_describe(logits)}. The loss that is used then needs "
                f"logits of shape (B, T, vocabulary), as the output or as its `.logits`. {add_loss}"
            )

    return next_token_loss(model, batch, check=check)


def default_optimizer(model: nn.Module, *, target: str) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained.

    Fused, as in torchtitan's recipes: it needs no temporaries of the parameters' size, so that the optimizer's step
    is not the peak that a plan is judged by. Where only some parameters are DTensors, they are groups of their own, by
    mesh: one fused kernel takes no mixture.

    Raises:
        TargetError: no parameter is trained.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise TargetError(
            f"target '{target}': no parameter of {type(model).__name__} requires a gradient, so there is no training "
            "step. Leave requires_grad on for what is to be trained."
        )
    of_mesh: dict[Any, list[nn.Parameter]] = {}
    for parameter in trained:
        of_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    groups = [{"params": parameters} for parameters in of_mesh.values()]
    return torch.optim.AdamW(groups, lr=DEFAULT_LEARNING_RATE, fused=True)


def _said(model: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of `names` that is a positive integer in the model's config, or in the model."""
    config = getattr(model, "config", None)
    for name in names:
        for value in (
            config.get(name) if isinstance(config, Mapping) else getattr(config, name, None),
            getattr(model, name, None),
        ):
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _embeddings(model: nn.Module) -> list[nn.Embedding]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def _embedding_size(model: nn.Module) -> int | None:
    """The size of the one token embedding.

    Of several (positions, token types), the token embedding is the one that mirrors a Linear: the head, which maps the
    same width back to the same vocabulary.
    """
    found = _embeddings(model)
    if len(found) > 1:
        heads = {tuple(module.weight.shape) for module in model.modules() if isinstance(module, nn.Linear)}
        found = [embedding for embedding in found if tuple(embedding.weight.shape) in heads]
    return found[0].num_embeddings if len(found) == 1 else None


def _count_of_embeddings(model: nn.Module) -> str:
    count = len(_embeddings(model))
    return "no nn.Embedding" if count == 0 else f"which of its {count} nn.Embedding is that of the tokens is not clear"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"of type {type(value).__name__}"
