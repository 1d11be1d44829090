"""A plan as fields of `[activation_checkpoint]` of torchtitan 0.1.0 to 0.2.2, with what these can't say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actune.export.torchtitan_versions import TorchtitanVersion
from actune.plan import NO_AC, WHOLE_LAYER, Treatment, compress_fqns_text


@dataclass(frozen=True, slots=True)
class Fields:
    """The nearest that fields can say.

    Attributes:
        values: keys of `[activation_checkpoint]`.
        lost: how that differs from the plan, one line each; empty if it says the same.
        notes: what the same words mean in this version, where that may matter.
    """

    values: Mapping[str, Any]
    lost: tuple[str, ...]
    notes: tuple[str, ...] = ()


def nearest_fields(treatments: Mapping[str, Treatment], version: TorchtitanVersion) -> Fields:
    """The fields that say what each layer gets, or come nearest to it.

    A plan of none and full AC becomes the every-nth-layer mode, with n such that no fewer layers are checkpointed than
    in the plan, so that it keeps no more. Any other mixture becomes what most layers get.
    """
    kinds = set(treatments.values())
    full = kinds - {NO_AC}
    if len(full) == 1 and NO_AC in kinds and (only := next(iter(full))).policy == "full":
        return _every_nth(treatments, only, version)
    ranked = Counter(treatments.values()).most_common()
    treatment = ranked[0][0] if ranked else NO_AC
    values, lost = _uniform(treatment, version)
    others = [fqn for fqn, given in treatments.items() if given != treatment]
    if others:
        lost.insert(
            0,
            f"layers: {compress_fqns_text(others)} get what the other layers get ({treatment.label()}), because the "
            "fields of torchtitan treat all layers alike.",
        )
    return Fields(values, tuple(lost), _notes(treatment, version))


def _every_nth(treatments: Mapping[str, Treatment], treatment: Treatment, version: TorchtitanVersion) -> Fields:
    """The mode that checkpoints layers n, 2n, … counted from 1 (`_apply_layer_sac` in 0.2.0 and 0.2.2)."""
    fqns = list(treatments)
    planned = [position for position, given in enumerate(treatments.values(), start=1) if given == treatment]
    n = len(fqns) // len(planned)
    exact = next((m for m in range(1, len(fqns) + 1) if list(range(m, len(fqns) + 1, m)) == planned), None)
    n = exact or n
    shared, lost = _checkpoint_keys(treatment, version)
    if exact is None:
        got = [fqns[position - 1] for position in range(n, len(fqns) + 1, n)]
        lost.insert(
            0,
            f"layers: full AC on {compress_fqns_text(got)} instead of on "
            f"{compress_fqns_text(fqns[position - 1] for position in planned)}, because the fields of torchtitan "
            "know every n-th layer only.",
        )
    counted = "torchtitan counts the layers of a process, so a pipeline stage checkpoints others than planned."
    values = {"mode": "selective", "selective_ac_option": str(n), **shared}
    return Fields(values, tuple(lost), (counted, *_notes(treatment, version)))


def _notes(treatment: Treatment, version: TorchtitanVersion) -> tuple[str, ...]:
    notes = []
    if treatment.policy == "selective" and treatment.save_ops == ("default",):
        own = ", ".join(sorted(version.saved_ops))
        notes.append(
            f'save_ops = "default" is torchtitan {version.name}\'s own list here ({own}). '
            "actune measured with that of 0.3.0: outputs of addmm, bmm, topk, the convolutions and others are "
            "recomputed, where the layer has them."
        )
    if treatment.is_checkpointed and treatment.preserve_rng_state and not version.takes_preserve_rng_state:
        notes.append(
            f"preserve_rng_state is false in torchtitan {version.name}, which can't be set: a layer that draws random "
            "numbers (dropout) would get wrong gradients. Its own models draw none."
        )
    return tuple(notes)


def _uniform(treatment: Treatment, version: TorchtitanVersion) -> tuple[dict[str, Any], list[str]]:
    if treatment.policy == "none":
        return {"mode": "none"}, []
    if treatment.policy == "memory_budget":
        if version.takes_memory_budget:
            return {"mode": "memory_budget", "memory_budget": float(treatment.memory_budget or 0)}, []
        return {"mode": "full"}, [
            f"policy: full AC, which keeps no more, instead of memory_budget, unknown to torchtitan {version.name}."
        ]
    shared, lost = _checkpoint_keys(treatment, version)
    if treatment.policy == "full":
        return {"mode": "full", **shared}, lost
    values: dict[str, Any] = {"mode": "selective", "selective_ac_option": "op"}
    if version.takes_filter:
        # Set even when empty: the default is ["moe.router.gate"].
        values["per_op_sac_force_recompute_mm_shapes_by_fqns"] = list(treatment.filter_fqns)
    return values | shared, _lost_of_selective(treatment, version) + lost


def _checkpoint_keys(treatment: Treatment, version: TorchtitanVersion) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    lost = []
    if treatment.wrap != (WHOLE_LAYER,):
        lost.append(f"wrap: the whole layer instead of {', '.join(treatment.wrap)}; torchtitan wraps layers only.")
    if version.takes_early_stop:
        values["early_stop"] = treatment.early_stop
    elif not treatment.early_stop:
        lost.append(f"early_stop: true instead of false; torchtitan {version.name} has no such key.")
    if version.takes_preserve_rng_state:
        values["preserve_rng_state"] = treatment.preserve_rng_state
    return values, lost


def _lost_of_selective(treatment: Treatment, version: TorchtitanVersion) -> list[str]:
    lost = []
    if treatment.save_every_nth_mm != 2:
        lost.append(
            f"save_every_nth_mm: 2 instead of {treatment.save_every_nth_mm}, which is fixed in torchtitan: matmuls "
            "1, 3, 5, … are saved."
        )
    lost += _lost_of_save_list(treatment, version)
    if treatment.save:
        lost.append(
            f"save: not said: {', '.join(treatment.save)}; torchtitan saves by kind of op, not by name, and these "
            "count as any other."
        )
    if treatment.filter_fqns and not version.takes_filter:
        lost.append(f"filter_fqns: not said: {', '.join(treatment.filter_fqns)}; {version.name} has no such key.")
    elif treatment.filter_fqns and treatment.filter_by != "shape":
        lost.append("filter_by: shape instead of name: every matmul of a named Linear's shape is recomputed.")
    return lost


def _lost_of_save_list(treatment: Treatment, version: TorchtitanVersion) -> list[str]:
    asked = {name.removeprefix("aten.").removesuffix(".default") for name in treatment.save_ops}
    is_own = version.saved_ops <= asked <= version.saved_ops | version.saved_ops_of_some
    if is_own or treatment.save_ops == ("default",):
        return []
    own = ", ".join(sorted(version.saved_ops))
    return [
        f"save_ops: torchtitan {version.name} has a list of its own ({own}) instead of {', '.join(treatment.save_ops)}."
    ]
