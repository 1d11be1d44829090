"""The structure of a module as values that are equal where the structure is."""

from __future__ import annotations

import re

from torch import Tensor, nn

LayerSignature = tuple[tuple[type[nn.Module], ...], tuple[str, ...]]


def layer_signature(layer: nn.Module) -> LayerSignature:
    """Equal for layers whose profile is the same: structure, and the settings that choose another way through it.

    Settings are the modules' public attributes that are a bool or a string (`is_causal`, `attention_type`); of a
    number only whether there is one (`sliding_window`), since a layer's own index, its scale of initialisation and
    the like differ from layer to layer and change no op. Digits in strings do not count for the same reason.
    """
    types = tuple(type(module) for module in layer.modules())
    return types, tuple(structure_lines(layer) + _setting_lines(layer))


def structure_lines(module: nn.Module) -> list[str]:
    """FQN and type name of each submodule; FQN, shape and dtype of each parameter and buffer, and which are trained.

    Types go by name without their module's, which for a user's file depends on where the file lies.
    """
    lines = [f"module {fqn} {type(child).__qualname__}" for fqn, child in module.named_modules()]
    lines += [
        f"parameter {fqn} {_form(parameter)} {'trained' if parameter.requires_grad else 'frozen'}"
        for fqn, parameter in module.named_parameters(remove_duplicate=False)
    ]
    lines += [f"buffer {fqn} {_form(buffer)}" for fqn, buffer in module.named_buffers(remove_duplicate=False)]
    return lines


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"


def _setting_lines(module: nn.Module) -> list[str]:
    lines = []
    for fqn, child in module.named_modules():
        for name, value in sorted(vars(child).items()):
            if name.startswith("_") or name == "training":
                continue
            if isinstance(value, bool):
                lines.append(f"setting {fqn} {name} {value}")
            elif isinstance(value, str):
                lines.append(f"setting {fqn} {name} {re.sub(r'[0-9]+', '#', value)!r}")
            elif value is None or isinstance(value, int | float):
                lines.append(f"setting {fqn} {name} {'none' if value is None else 'number'}")
    return lines
