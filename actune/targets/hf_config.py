"""Reading Hugging Face config files: another number of layers, and nothing that makes a step other than training."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from actune.boundary import check_plain
from actune.errors import UsageError, cut, shorten
from actune.files import read_bytes
from actune.target_spec import TargetSpec

MAX_CONFIG_BYTES = 2**20

_STACKS = ("text_config", "encoder", "decoder")
"""Where the configs of several models in one have the one whose layers are trained here."""

_OWN_DEPTHS = ("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers")
"""By what names configs of encoder-decoders count the layers of each stack, besides num_hidden_layers."""


_LAYER_DROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
"""By what names configs have the probability that a layer is skipped in a step (Fan et al. 2019)."""


def transformers_library(target: str = "hf:") -> ModuleType:
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    # A config may name weights or code of the hub (a backbone, a kernel): nothing is fetched for it.
    os.environ["HF_HUB_OFFLINE"] = "1"
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


def read_config(spec: TargetSpec) -> Any:
    """The `PreTrainedConfig` that a spec of the family `hf` names, with its option `layers` applied.

    A cache of keys and values, layers that are skipped at random, and checkpointing that is not the plan's, are off in
    it and in the configs within it.

    Raises:
        UsageError: transformers is not installed, the file is no config that it knows, or `layers` does not fit it.
    """
    transformers = transformers_library(spec.text)
    fields = _without_own_checkpointing(_read(spec))
    config = _config(transformers, spec, fields)
    layers = spec.size("layers")
    if layers is not None:
        config = _of_depth(transformers, spec, config, fields, layers)
    for each in configs_within(config):
        _make_steps_alike(each)
    return config


def configs_within(config: Any) -> list[Any]:
    """The config and all those that it holds, as of a vision tower or of the decoder of an encoder-decoder."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(each for one in inner if one is not None for each in configs_within(one))]


def _read(spec: TargetSpec) -> dict[str, Any]:
    try:
        content = read_bytes(spec.location, what=f"target '{spec.text}': the file", max_bytes=MAX_CONFIG_BYTES)
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"target '{spec.text}': '{spec.location}' is not JSON: {cut(str(error))}.") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise UsageError(
            f"target '{spec.text}': '{spec.location}' is no Hugging Face config. Expected a JSON object with a "
            '"model_type", such as {"model_type": "llama", …}.'
        )
    check_plain(fields, source=f"target '{spec.text}': '{spec.location}'")
    _refuse_kernels(spec, fields)
    return fields


def _refuse_kernels(spec: TargetSpec, fields: Mapping[str, Any]) -> None:
    """A config is data, and does not make transformers fetch an attention's kernel from the hub and run it.

    It would do so for a name with a slash in it (transformers 5, modeling_utils.py).

    Raises:
        UsageError: the config, or one within it, names such a kernel.
    """
    for name, value in fields.items():
        if name.endswith("attn_implementation") and "/" in str(value):
            raise UsageError(
                f"target '{spec.text}': {name} in '{spec.location}' names code outside of transformers: "
                f"{shorten(value)}. A config is only read here. Remove the key, or write a target of your own."
            )
        if isinstance(value, dict):
            _refuse_kernels(spec, value)


def _without_own_checkpointing(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without that, and without `auto_map`, which names code of the hub's repositories."""
    return {
        name: _without_own_checkpointing(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in ("gradient_checkpointing", "auto_map")
    }


def _make_steps_alike(config: Any) -> None:
    """Switches off what inference needs, and LayerDrop: with it, each step would have layers of its own."""
    config.use_cache = False
    for name in _LAYER_DROPS:
        if getattr(config, name, 0):
            setattr(config, name, 0.0)


def _config(transformers: ModuleType, spec: TargetSpec, fields: Mapping[str, Any]) -> Any:
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


def _depths(config: Any) -> list[str]:
    """The fields that count the layers of the config's stacks."""
    main = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    names = dict.fromkeys([main, *(_OWN_DEPTHS if config.is_encoder_decoder else ())])
    return [name for name in names if isinstance(getattr(config, name, None), int)]


def _of_depth(transformers: ModuleType, spec: TargetSpec, config: Any, fields: dict[str, Any], layers: int) -> Any:
    """The config with another number of layers in each stack.

    What is listed for each layer is cut, or left to its default: lists with "layer" in their name, and if the config
    does not take that, all that have as many entries as there are layers.
    """
    parts = [name for name in _STACKS if name in config.sub_configs]
    for part in [getattr(config, name) for name in parts] or [config]:
        _check_has_depth(spec, part, layers)
    refused = ""
    for every_list in (False, True):
        if parts:
            changed = {
                name: _with_layers(getattr(config, name), fields.get(name) or {}, layers, every_list=every_list)
                for name in parts
            }
        else:
            changed = _with_layers(config, fields, layers, every_list=every_list)
        try:
            found = _config(transformers, spec, fields | changed if parts else changed)
        except UsageError as error:
            refused = refused or " ".join(str(error.__cause__).split())
            continue
        for part in [getattr(found, name) for name in parts] or [found]:
            _check_depth(spec, part, layers)
        return found
    raise UsageError(
        f"target '{spec.text}': layers={layers} can't be applied to a config of '{config.model_type}', which then "
        f"says: {refused.rstrip('.')}. Change the number of layers in the file."
    )


def _check_has_depth(spec: TargetSpec, config: Any, layers: int) -> None:
    depths = _depths(config)
    if not depths or getattr(config, "depths", None) is not None:
        what = "its layers in stages" if depths else "no 'num_hidden_layers'"
        raise UsageError(
            f"target '{spec.text}': a config of '{config.model_type}' has {what}, so layers={layers} can't be "
            "applied. Change the number of layers in the file."
        )


def _with_layers(config: Any, fields: Mapping[str, Any], layers: int, *, every_list: bool) -> dict[str, Any]:
    depths = _depths(config)
    befores = {getattr(config, name) for name in depths}
    changed: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list) and len(value) in befores and ("layer" in name or every_list):
            if layers <= len(value):
                changed[name] = value[:layers]
        else:
            changed[name] = value
    changed.pop("num_hidden_layers", None)
    return changed | dict.fromkeys(depths, layers)


def _check_depth(spec: TargetSpec, config: Any, layers: int) -> None:
    for name in _depths(config):
        if getattr(config, name) != layers:
            raise UsageError(
                f"target '{spec.text}': layers={layers} has no effect on a config of '{config.model_type}', whose "
                f"{name} stays {getattr(config, name)}. Change the number of layers in the file."
            )
