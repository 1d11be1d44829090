"""Models from a Hugging Face config file, with random weights and data. Nothing is fetched from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from actune.errors import UsageError
from actune.target_spec import TargetSpec
from actune.targets.defaults import DEFAULT_BATCH, DEFAULT_SEQ
from actune.targets.hf_config import read_config, transformers_library
from actune.targets.hf_tasks import Task, choose_task


class HfTarget:
    """A model of transformers, random data and the model's own loss."""

    def __init__(self, config: Any, task: Task, *, batch: int, seq: int) -> None:
        """Takes a `PreTrainedConfig`, what is trained, examples in a batch, and tokens in each (0: there are none)."""
        self.config = config
        self._task = task
        self._batch, self._seq = batch, seq

    def model(self) -> nn.Module:
        """A new model on the CPU, in the config's dtype; weights from torch's global generator."""
        model: nn.Module = getattr(transformers_library(), self._task.auto_class).from_config(
            self.config, trust_remote_code=False
        )
        return model

    def batch(self, step: int) -> dict[str, Tensor]:
        """The keywords of the model's forward, labels among them; see `actune.targets.hf_tasks`."""
        return self._task.batch(self.config, self._batch, self._seq, step)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss, a scalar."""
        with _no_packed_sequences() if isinstance(batch["labels"], FakeTensor) else nullcontext():
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
        UsageError: transformers is not installed, the file is no config of a model that can be trained here, or an
            option does not fit it.
    """
    config = read_config(spec)
    task = choose_task(transformers_library(spec.text), config, target=spec.text)
    return HfTarget(config, task, batch=spec.size("batch") or DEFAULT_BATCH, seq=_seq(spec, config, task))


def _seq(spec: TargetSpec, config: Any, task: Task) -> int:
    seq, longest = spec.size("seq"), task.longest(config)
    if longest is None:
        return DEFAULT_SEQ if seq is None else seq
    if seq is None:
        return min(DEFAULT_SEQ, longest)
    if longest == 0:
        raise UsageError(
            f"target '{spec.text}': seq={seq} means nothing for {task.name}: pictures are as large as the config's "
            "image_size. Remove the option."
        )
    if seq > longest:
        raise UsageError(
            f"target '{spec.text}': seq={seq} is more than the longest sequence that the config allows. Expected at "
            f"most {longest}."
        )
    return seq


def transformers_version() -> str:
    """The installed version.

    Raises:
        UsageError: transformers is not installed.
    """
    installed: str = transformers_library().__version__
    return installed
