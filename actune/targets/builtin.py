"""The built-in targets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from actune.target_spec import TargetSpec
from actune.targets.dense import DecoderSizes, DenseTarget
from actune.targets.moe import ExpertSizes, MoETarget


def _moe(sizes: DecoderSizes) -> DenseTarget:
    return MoETarget(sizes, ExpertSizes())


# A name's target for given sizes, and its number of layers.
BUILDERS: Mapping[str, tuple[Callable[[DecoderSizes], DenseTarget], int]] = MappingProxyType(
    {
        "dense-tiny": (DenseTarget, 4),
        "dense-tiny-12": (DenseTarget, 12),
        "moe-tiny": (_moe, 4),
        "moe-tiny-12": (_moe, 12),
    }
)


def builtin_target(spec: TargetSpec) -> DenseTarget:
    """The target that a spec of the family `builtin` names, with its options applied."""
    build, layers = BUILDERS[spec.location]
    sizes = {option: size for option in ("batch", "seq") if (size := spec.size(option)) is not None}
    return build(DecoderSizes(layers=spec.size("layers") or layers, **sizes))
