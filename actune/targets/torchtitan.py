"""Language models from torchtitan's registry, with random weights: its modules, its loss, its way to shard them.

Sources, in torchtitan 0.3.0: `models/*/__init__.py` (registries), `trainer.py` (how a model is built and run),
`components/loss.py`, `models/*/parallelize.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from actune.errors import UsageError
from actune.target_spec import TargetSpec
from actune.targets.defaults import DEFAULT_BATCH, DEFAULT_SEQ
from actune.targets.tokens import random_tokens

_VERSION = "0.3."

# Families whose attention is causal and nothing more, so that SDPA computes what FlexAttention does. Others have
# attention sinks, sliding windows or linear attention, which SDPA would leave out without a word.
_SDPA_FAMILIES = ("deepseek_v3", "kimi_k2_7", "llama3", "qwen3")


_NO_LANGUAGE_MODELS = ("flux",)
"""Families whose import alone needs packages that no language model does."""

_NOT_ASKED_FOR = {"fla": "flash-linear-attention"}
"""By module, what its package is called, where torchtitan's own requirements do not have it."""


class TorchtitanTarget:
    """A decoder of torchtitan, random tokens that are one document per sequence, and the loss of its recipes.

    In one process the model computes in its dtype (its experts in bfloat16 in any case). As one of several it is
    sharded and computes in what torchtitan's training config says, bfloat16. Its load balancing of experts, a hook of
    its optimizer, is left out, so that routing does not drift through the steps of a study.
    """

    def __init__(self, spec: TargetSpec, model_spec: Any, *, batch: int, seq: int) -> None:
        """Takes what was asked for, torchtitan's `ModelSpec` of that decoder, and the tokens' shape (batch, seq)."""
        # As in torchtitan's recipes: logits are made, and their gradients taken, for an eighth of a sequence at a time.
        self._loss = _titan("components.loss").ChunkedLossWrapper.Config().build()
        self._asked, self._spec = spec, model_spec
        self._device_type = "cpu"
        self._shape = (batch, seq)

    def model(self) -> nn.Module:
        """The model for a CPU."""
        return self.model_on(torch.device("cpu"))

    def model_on(self, device: torch.device) -> nn.Module:
        """A new model on the meta device, which torchtitan's own `init_weights` fills once it has storage.

        Where there is no CUDA, SDPA stands in for FlexAttention, which has no backward on a CPU.

        Raises:
            UsageError: SDPA can't stand in, since the family's attention does more.
        """
        self._device_type = device.type
        config = copy.deepcopy(self._spec.model)
        if device.type != "cuda":
            _use_sdpa(self._asked, config)
        with torch.device("meta"), _default_dtype(getattr(torch, self._asked.dtype)):
            model: nn.Module = config.build()
        model._skip_lm_head = True  # type: ignore[assignment] # the loss applies it, chunk by chunk
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """`tokens`, `labels` and `positions`, int64 of shape (batch, seq), and `valid_tokens`, how many all ranks have.

        All ranks have the same tokens.
        """
        batch, seq = self._shape
        tokens = random_tokens(step, batch=batch, seq=seq + 1, vocabulary=self._spec.model.vocab_size)
        positions = torch.arange(seq).repeat(batch, 1)
        valid_tokens = torch.tensor(batch * seq * _ranks())
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "positions": positions,
            "valid_tokens": valid_tokens,
        }

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross entropy in float32: this rank's sum over its tokens, over the number of tokens of all ranks."""
        positions = batch["positions"]
        masks = {}
        attention = _titan("models.common.attention")
        inner = getattr(model.config.first_attention, "inner_attention", None)
        if isinstance(inner, attention.FlexAttention.Config | attention.VarlenAttention.Config):
            masks["attention_masks"] = model.get_attention_masks(positions=positions)
        hidden = model(batch["tokens"], positions=positions, **masks)
        self._loss.set_lm_head(model.lm_head)
        loss: Tensor
        loss, _ = self._loss(hidden, batch["labels"], batch["valid_tokens"])
        return loss

    @property
    def parallelize(self) -> Callable[[nn.Module], nn.Module] | None:
        """The family's own step in torchtitan, with FSDP over all ranks; None in a process that is alone."""
        return self._shard if _ranks() > 1 else None

    def _shard(self, model: nn.Module) -> nn.Module:
        """AC and compile are the plan's, so torchtitan's are off; what is left of its `parallelize_fn` is FSDP."""
        configs = _titan("config")
        dims_module = _titan("distributed.parallel_dims")
        # Without tensor or context parallelism the other backends shard the same parameters in the same way, but need
        # layouts for every module.
        parallelism = configs.ParallelismConfig(spmd_backend="partial_dtensor")
        dims = dims_module.ParallelDims.from_config(parallelism, _ranks())
        # torchtitan takes the device from what the machine has, and "cuda" where it has none.
        of_machine, dims_module.device_type = dims_module.device_type, self._device_type
        try:
            dims.build_mesh()
        finally:
            dims_module.device_type = of_machine
        sharded: nn.Module = self._spec.parallelize_fn(
            model,
            parallel_dims=dims,
            training=configs.TrainingConfig(
                local_batch_size=self._shape[0], seq_len=self._shape[1], dtype=self._asked.dtype
            ),
            parallelism=parallelism,
            compile_config=configs.CompileConfig(enable=False),
            ac_config=None,
            dump_folder="",
        )
        if self._device_type == "cpu":
            # torchtitan divides gradients by nothing, which FSDP2 asks of collectives in a way that gloo does not know.
            for module in sharded.modules():
                if isinstance(module, dist.fsdp.FSDPModule):
                    module.set_force_sum_reduction_for_comms(True)
        return sharded


def torchtitan_target(spec: TargetSpec) -> TorchtitanTarget:
    """The target of a spec of the family `torchtitan`; 4 sequences of 256 tokens unless it says otherwise.

    Raises:
        UsageError: torchtitan, or a package that the family needs, is not installed; there is no such model; or an
            option does not fit it.
    """
    torchtitan_version(spec.text)
    family, _, flavor = spec.location.partition("/")
    if family in _NO_LANGUAGE_MODELS:
        raise _no_language_model(spec, family)
    module = _family(spec, family)
    flavors = _flavors(module)
    if flavor not in flavors:
        raise UsageError(
            f"target '{spec.text}': torchtitan's {family} has no flavor '{flavor}'.{_near(flavor, flavors)} Expected "
            f"one of {', '.join(flavors)}."
        )
    model_spec = module.model_registry(flavor)
    config = model_spec.model
    if not isinstance(config, _titan("models.common.decoder").Decoder.Config):
        raise _no_language_model(spec, family)
    if getattr(config, "vision_encoder", None) is not None:
        config.vision_encoder = None  # batches are text, and modules that never run are no layers
    seq = _fit_sequence(spec, config)  # by all layers: the first may have no attention that says how long it may be
    layers = spec.size("layers")
    if layers is not None:
        if layers > len(config.layers):
            raise UsageError(
                f"target '{spec.text}': layers={layers} is more than {spec.location} has. Expected at most "
                f"{len(config.layers)}."
            )
        config.layers = config.layers[:layers]
    return TorchtitanTarget(spec, model_spec, batch=spec.size("batch") or DEFAULT_BATCH, seq=seq)


def torchtitan_version(target: str = "torchtitan:") -> str:
    """The installed version.

    Raises:
        UsageError: torchtitan is not installed, or another version than this module is written for.
    """
    try:
        installed = version("torchtitan")
    except PackageNotFoundError:
        raise UsageError(
            f"target '{target}': torchtitan is not installed. Install it with: pip install 'actune[torchtitan]'"
        ) from None
    if not installed.startswith(_VERSION):
        raise UsageError(
            f"target '{target}': torchtitan {installed} is installed, whose models are built in another way. Expected "
            f"{_VERSION}*: pip install 'actune[torchtitan]'"
        )
    return installed


def _titan(name: str) -> Any:
    """A module of torchtitan. Its import takes seconds, so only targets that need it wait for it."""
    return importlib.import_module(f"torchtitan.{name}")


def _ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _family(spec: TargetSpec, family: str) -> ModuleType:
    try:
        models = _titan("models")
        families = sorted(m.name for m in pkgutil.iter_modules(models.__path__) if m.ispkg and m.name != "common")
        if family not in families:
            raise UsageError(
                f"target '{spec.text}': torchtitan has no family '{family}'.{_near(family, families)} Expected one of "
                f"{', '.join(families)}, then a slash and a flavor."
            )
        found: ModuleType = _titan(f"models.{family}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"target '{spec.text}': torchtitan's {family} needs the module '{error.name}', which is not installed. "
            f"{_how_to_install(error.name)}"
        ) from error
    return found


def _how_to_install(module: str | None) -> str:
    if module in _NOT_ASKED_FOR:
        return f"torchtitan does not ask for it itself; install it with: pip install {_NOT_ASKED_FOR[module]}"
    return "Install all that torchtitan asks for: pip install 'actune[torchtitan]'"


def _no_language_model(spec: TargetSpec, family: str) -> UsageError:
    return UsageError(
        f"target '{spec.text}': {family} is no language model, and only those can be targets. For this one write a "
        "Target of your own."
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As torchtitan's `set_default_dtype`: what is built in the block is of that dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _flavors(module: ModuleType) -> list[str]:
    """What the family's registry knows: the keys of its table, which each family gives another name."""
    tables = (value for name, value in vars(module).items() if name.endswith("_configs") and isinstance(value, dict))
    return list(next(tables))


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _fit_sequence(spec: TargetSpec, config: Any) -> int:
    """The length of a sequence. Tables of positions get that length too, as torchtitan's trainer makes them."""
    longest: int = config.max_seq_len
    seq = spec.size("seq") or min(DEFAULT_SEQ, longest)
    chunks: int = _titan("components.loss").ChunkedLossWrapper.Config().num_chunks
    if seq > longest:
        raise UsageError(
            f"target '{spec.text}': seq={seq} is more than the positions of {spec.location}. Expected at most "
            f"{longest}."
        )
    if seq % chunks:
        raise UsageError(
            f"target '{spec.text}': seq={seq} is no multiple of {chunks}, the number of chunks that torchtitan's loss "
            f"cuts a sequence into. Expected one, such as {seq + -seq % chunks}."
        )
    for layer in config.layers:
        rope = getattr(layer.attention, "rope", None)
        if rope is not None:
            layer.attention.rope = dataclasses.replace(rope, max_seq_len=seq)
    return seq


def _use_sdpa(spec: TargetSpec, config: Any) -> None:
    if spec.location.partition("/")[0] not in _SDPA_FAMILIES:
        raise UsageError(
            f"target '{spec.text}': its attention needs kernels that only CUDA has, and SDPA, which stands in for them "
            "on a CPU or a simulated device, computes something else. Use --device cuda, or one of the families "
            f"{', '.join(_SDPA_FAMILIES)}."
        )
    attention = _titan("models.common.attention")
    for _, _, parent, field in list(config.traverse(attention.FlexAttention.Config)):
        setattr(parent, field, attention.ScaledDotProductAttention.Config())
