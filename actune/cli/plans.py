"""Plans that a command line names: presets, and files of TOML."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from actune.errors import PlanError, UsageError

if TYPE_CHECKING:
    from actune.plan import Plan
    from actune.records import ModelStructure

plan_help = (
    "A plan's TOML file, or a preset: none, full, full-every-N, full-first-P%, sac, sac-every-N, split, split-full. "
    "May be repeated"
)


def check_plan_names(names: Iterable[str]) -> None:
    """Checks the names before a target is loaded, which takes a while.

    Raises:
        UsageError: one is neither a preset nor a file, or the file is no plan.
    """
    from actune.plan import load_plan
    from actune.plan.presets import PRESETS, is_preset

    for name in names:
        if is_preset(name):
            continue
        if not os.path.exists(name):  # unlike Path's, it takes names that can't be a file's
            near = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"plan '{name}' is neither a file nor a preset.{hint} Presets: {', '.join(PRESETS)}.")
        load_plan(name)


def plans_for(names: Sequence[str], structure: ModelStructure) -> list[tuple[str, Plan]]:
    """The plans for a model, each with its name, in their canonical form.

    Raises:
        PlanError: a plan has a pattern that matches no layer.
    """
    return [(name, _plan_for(name, structure)) for name in names]


def _plan_for(name: str, structure: ModelStructure) -> Plan:
    from actune.plan import load_plan
    from actune.plan.presets import is_preset, preset_plan

    if is_preset(name):
        return preset_plan(name, structure)
    try:
        return load_plan(name).canonical_for(structure.layer_fqns)
    except PlanError as error:
        raise PlanError(f"{name}: {error}") from None
