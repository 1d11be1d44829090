"""Random tokens and next-token cross entropy: the batch and the loss of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def random_tokens(step: int, *, batch: int, seq: int, vocabulary: int) -> Tensor:
    """Tokens of shape (batch, seq), int64, on the CPU: the same for the same step, whatever the global generator."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(vocabulary, (batch, seq), generator=generator)


def next_token_loss(model: nn.Module, tokens: Tensor, *, check: Callable[[Any], None] | None = None) -> Tensor:
    """Mean cross entropy of each next token.

    Args:
        model: takes tokens of shape (B, T) and returns logits of shape (B, T, vocabulary), itself or as `.logits`.
        tokens: int64 of shape (B, T + 1).
        check: gets the logits (or the model's output where it has none), to raise if they have another form.

    Returns:
        a scalar.
    """
    output = model(tokens[:, :-1])
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if check is not None:
        check(logits)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
