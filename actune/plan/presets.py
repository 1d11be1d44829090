"""Presets: plans that people know by name, made for a model's layers."""

from __future__ import annotations

import re

from actune.errors import UsageError
from actune.plan.plan import Plan
from actune.plan.treatment import NO_AC, WHOLE_LAYER, PolicyName, Treatment
from actune.records import ModelStructure

PRESETS = {
    "none": "no activation checkpointing",
    "full": "each layer recomputed whole",
    "full-every-N": "full on every Nth layer: N, 2N, … counted from 1 (torchtitan's selective option N)",
    "full-first-P%": "full on the first P% of the layers, none on the rest",
    "sac": "torchtitan's selective AC: its save list, every second matmul kept",
    "sac-every-N": "selective AC with matmuls 1, N+1, 2N+1, … kept",
    "split": "selective AC on attention and MoE or feed-forward apart (torchtitan #1683)",
    "split-full": "full on attention and MoE or feed-forward apart",
}

_FIRST_SHARE = re.compile(r"full-first-([1-9]\d?)%")
_EVERY_N = re.compile(r"(full|sac)-every-([1-9]\d{0,3})")


def is_preset(name: str) -> bool:
    """Whether the name is one of a preset, N and P being numbers."""
    if "-every-" in name or "-first-" in name:
        return (_EVERY_N.fullmatch(name) or _FIRST_SHARE.fullmatch(name)) is not None
    return name in PRESETS


def preset_plan(name: str, structure: ModelStructure) -> Plan:
    """The plan of a preset for a model, in its canonical form.

    Raises:
        UsageError: there is no such preset.
    """
    if not is_preset(name):
        raise UsageError(
            f"'{name}' is no preset. Presets: {', '.join(PRESETS)}, where N and P are numbers, such as 2 or 75."
        )
    every_n = _EVERY_N.fullmatch(name)
    n = int(every_n[2]) if every_n else 1
    first_share = _FIRST_SHARE.fullmatch(name)
    first = round(len(structure.layer_fqns) * int(first_share[1]) / 100) if first_share else len(structure.layer_fqns)
    parts = {fqn: layer_class.parts for layer_class in structure.classes for fqn in layer_class.layer_fqns}
    treatments = {}
    for number, fqn in enumerate(structure.layer_fqns, start=1):
        is_left_alone = number > first or (name.startswith("full-every") and number % n != 0)
        if name == "none" or is_left_alone:
            treatments[fqn] = NO_AC
        elif name.startswith("full"):
            treatments[fqn] = Treatment("full")
        elif name.startswith("sac"):
            treatments[fqn] = Treatment("selective", save_every_nth_mm=n if every_n else 2)
        else:
            policy: PolicyName = "full" if name == "split-full" else "selective"
            treatments[fqn] = Treatment(policy, wrap=parts[fqn] or (WHOLE_LAYER,))
    return Plan.from_treatments(treatments)
