"""What the config files of torchtitan 0.1.0 to 0.2.2 can say about AC and compile. Facts only, read from its sources.

0.1.0: torchtitan/config_manager.py (ActivationCheckpoint, Training.compile) and models/llama3/infra/parallelize.py.
0.2.0, 0.2.2: torchtitan/config/job_config.py (ActivationCheckpoint, Compile), distributed/activation_checkpoint.py and
models/*/infra/parallelize.py, which hold the save lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from actune.errors import UsageError


@dataclass(frozen=True, slots=True)
class TorchtitanVersion:
    """One version's rules.

    Attributes:
        name: the version.
        takes_early_stop: whether `early_stop` is a key; before that PyTorch's own default, true, holds.
        takes_preserve_rng_state: whether `preserve_rng_state` is a key; before that it is fixed to false.
        takes_filter: whether `per_op_sac_force_recompute_mm_shapes_by_fqns` is a key (PR #1380). Its default there is
            `["moe.router.gate"]`.
        takes_memory_budget: whether `mode = "memory_budget"` exists.
        has_compile_section: `[compile] enable, components`; before that `[training] compile`, which compiles the loss
            too.
        saved_ops: the save list of per-op SAC that every model family has.
        saved_ops_of_some: ops that only some families' lists have (PR #1672 for the all-to-all of MoE models).
        apply_ac_home: the module that defines the `apply_ac` which the families import.
        disables_dynamo_lru_cache: whether `apply_ac` does so (pytorch #166926).
    """

    name: str
    takes_early_stop: bool
    takes_preserve_rng_state: bool
    takes_filter: bool
    takes_memory_budget: bool
    has_compile_section: bool
    saved_ops: frozenset[str]
    saved_ops_of_some: frozenset[str]
    apply_ac_home: str
    disables_dynamo_lru_cache: bool


_SAVED_IN_0_1_0 = frozenset(
    {
        "mm",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_c10d_functional.reduce_scatter_tensor",
        "max",
    }
)
_SAVED_IN_0_2_0 = _SAVED_IN_0_1_0 | {"flex_attention"}
_SAVED_IN_0_2_2 = _SAVED_IN_0_2_0 | {
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
    "inductor_compiled_code",
}

VERSIONS = MappingProxyType(
    {
        version.name: version
        for version in (
            TorchtitanVersion(
                name="0.1.0",
                takes_early_stop=False,
                takes_preserve_rng_state=False,
                takes_filter=False,
                takes_memory_budget=False,
                has_compile_section=False,
                saved_ops=_SAVED_IN_0_1_0,
                saved_ops_of_some=frozenset(),
                apply_ac_home="torchtitan.models.llama3.infra.parallelize",
                disables_dynamo_lru_cache=False,
            ),
            TorchtitanVersion(
                name="0.2.0",
                takes_early_stop=True,
                takes_preserve_rng_state=False,
                takes_filter=True,
                takes_memory_budget=True,
                has_compile_section=True,
                saved_ops=_SAVED_IN_0_2_0,
                saved_ops_of_some=frozenset({"_c10d_functional.all_to_all_single"}),
                apply_ac_home="torchtitan.distributed.activation_checkpoint",
                disables_dynamo_lru_cache=False,
            ),
            TorchtitanVersion(
                name="0.2.2",
                takes_early_stop=True,
                takes_preserve_rng_state=True,
                takes_filter=True,
                takes_memory_budget=True,
                has_compile_section=True,
                saved_ops=_SAVED_IN_0_2_2,
                saved_ops_of_some=frozenset({"_c10d_functional.all_to_all_single", "torch_attn._varlen_attn"}),
                apply_ac_home="torchtitan.distributed.activation_checkpoint",
                disables_dynamo_lru_cache=True,
            ),
        )
    }
)
DEFAULT_VERSION = "0.2.2"


def version_named(name: str | None) -> TorchtitanVersion:
    """The version's rules, of the default version for None.

    Raises:
        UsageError: the version is not one whose config files are known.
    """
    version = VERSIONS.get(name or DEFAULT_VERSION)
    if version is None:
        raise UsageError(
            f"--version {name}: torchtitan-toml knows torchtitan {', '.join(VERSIONS)}. Name one of these, or export "
            "with --format torchtitan for 0.3.0, which has no TOML."
        )
    return version
