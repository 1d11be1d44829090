"""Checkpointing that a model brings along. With a plan on top of it, each layer would be recomputed twice."""

from __future__ import annotations

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from actune.ac.regions import Region


def own_checkpointing(model: nn.Module) -> str | None:
    """What in a model checkpoints by itself and how to switch it off, None if nothing is known to.

    Known are transformers' `gradient_checkpointing`, which a flag on its modules tells, and PyTorch's wrapper. Calls of
    `torch.utils.checkpoint` in a forward do not show from outside.
    """
    for fqn, module in model.named_modules():
        name = fqn or "the model"
        if getattr(module, "gradient_checkpointing", False) is True:
            return (
                f"{name} has gradient_checkpointing on, and what is checkpointed is the plan's choice. Call "
                "gradient_checkpointing_disable() on the model of transformers first."
            )
        if isinstance(module, CheckpointWrapper) and not isinstance(module, Region):
            return (
                f"{name} is wrapped by PyTorch's checkpoint_wrapper already, and what is checkpointed is the plan's "
                "choice. Build the model without it."
            )
    return None
