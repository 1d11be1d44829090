"""What a study remembers of a plan that it predicted, whether or not it ran it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from actune.plan import Plan, dump_plan, plan_hash


class PredictedNumbers(NamedTuple):
    """A prediction without the plan's text, as in PredictionRecord."""

    plan_hash: str
    preset: str | None
    peak_bytes: int | None
    step_time_s: float | None


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """A plan as the cost model sees it before any trial of it.

    Attributes:
        plan_hash: of the plan.
        plan_toml: as `dump_plan(plan, with_provenance=False)` writes it.
        preset: the preset's name if the plan is one.
        peak_bytes: predicted; None if a treatment of the plan can't be had.
        step_time_s: predicted, of a step after the optimizer's first; None as well then.
        on_frontier: whether no other plan of the space is predicted to beat it in both.
    """

    plan_hash: str
    plan_toml: str
    preset: str | None
    peak_bytes: int | None
    step_time_s: float | None
    on_frontier: bool

    def __post_init__(self) -> None:
        for name in ("peak_bytes", "step_time_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"plan {self.plan_hash}: {name} is {value}. Expected a finite number from 0 up, or None."
                )
        if self.on_frontier and (self.peak_bytes is None or self.step_time_s is None):
            raise ValueError(f"plan {self.plan_hash} is on the frontier without a predicted peak and step time.")

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        peak_bytes: int | None,
        step_time_s: float | None,
        preset: str | None = None,
        on_frontier: bool = False,
    ) -> PredictionRecord:
        """The record of a plan; raises ValueError as the class does."""
        toml = dump_plan(plan, with_provenance=False)
        return cls(plan_hash(plan), toml, preset, peak_bytes, step_time_s, on_frontier)
