"""A target's model on fake tensors: nothing of it is ever filled or held."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from actune.errors import TargetError
from actune.targets import BoundTarget


def build_fake_model(target: BoundTarget, fake_mode: FakeTensorMode) -> nn.Module:
    """The model, built on the meta device, with all its tensors made fake CPU tensors; shared ones stay shared.

    Raises:
        TargetError: the target's code needs the values of tensors, which the meta device does not have.
    """
    try:
        with torch.device("meta"):
            model = target.model()
    except TargetError as error:
        raise TargetError(
            f"{error}. On a simulated device the model is built on the meta device, where tensors have no values. "
            "Build it without reading values of tensors, or give those tensors device='cpu'."
        ) from error
    _replace_tensors(model, _Faker(fake_mode))
    return model


class _Faker:
    """Makes the fake of a tensor, and the same one when it comes again."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        self._fake_mode = fake_mode
        # With the tensor itself, whose id would be used again if it were dropped.
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            self._made[id(tensor)] = tensor, self._make(tensor)
        return self._made[id(tensor)][1]

    def _make(self, tensor: Tensor) -> Tensor:
        with self._fake_mode:
            fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            fake.__dict__.update(vars(tensor))
        return fake


def _replace_tensors(model: nn.Module, fake_of: Callable[[Tensor], Tensor]) -> None:
    for module in model.modules():
        # Tensors that are neither parameters nor buffers count too: some modules keep tables as plain attributes.
        places: tuple[MutableMapping[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for tensors in places:
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    tensors[name] = fake_of(value)
