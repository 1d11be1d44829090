"""A model on a real device, whether the target built it there, on another one, or on the meta device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from actune.errors import TargetError


def state_of(model: nn.Module, *, recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by FQN."""
    yield from model.named_parameters(recurse=recurse)
    yield from model.named_buffers(recurse=recurse)


def is_on_meta(model: nn.Module) -> bool:
    """Whether any of its parameters and buffers has no storage yet."""
    return any(tensor.is_meta for _, tensor in state_of(model))


def materialize(model: nn.Module, device: torch.device, *, target: str) -> nn.Module:
    """The model on the device; one built on the meta device gets storage and its own initialisation.

    Raises:
        TargetError: a model on the meta device does not say how it is initialised.
    """
    if not is_on_meta(model):
        return model.to(device)
    uninitialised = [m for m in model.modules() if any(t.is_meta for _, t in state_of(m, recurse=False))]
    shared: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(parameter, []).append(name)
    # As nn.Module.to_empty, which would also forget what is there already, and what is shared.
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    for first, *others in shared.values():
        for name in others:
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, model.get_parameter(first))
    for name in ("init_weights", "init_states"):  # transformers and torchtitan; plain torch has reset_parameters
        initialise = getattr(model, name, None)
        if callable(initialise):
            with torch.no_grad():
                initialise()
            return model
    without = [type(m).__name__ for m in uninitialised if not hasattr(m, "reset_parameters")]
    if without:
        raise TargetError(
            f"target '{target}' builds its model on the meta device, and {without[0]} has no reset_parameters(). Give "
            "the model a method init_weights() that fills all parameters and buffers."
        )
    for module in uninitialised:
        module.reset_parameters()  # type: ignore[operator]
    return model
