"""Lessons: steps under mixed plans, each of which teaches what several treatments cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from actune.cost.profile import (
    CallCost,
    CostProfile,
    LayerCost,
    Refusal,
    calls_of,
    unheld_ends,
    without_frees,
)
from actune.cost.reserve import reserved_peak
from actune.cost.same_calls import check_same_calls
from actune.errors import DeviceMemoryError, PlanError
from actune.plan import Plan, Treatment, dump_plan
from actune.step_profile import PlanProfiled, ProfilePlan, Slot

BASE = Treatment("full")
"""What layers get that teach nothing: no plan needs much less, so it runs where any does."""

STEPS_PER_TREATMENT = 3
"""How many steps may be run for each treatment that a step teaches; at least one of them is timed."""

Run = Callable[[ProfilePlan], PlanProfiled]

_Lesson = tuple[tuple[int, Treatment], ...]
"""What one step is to teach: numbers of roles, and treatments."""


def learn(profile: CostProfile, treatments: Sequence[Sequence[Treatment]], run: Run, timed_steps: int) -> CostProfile:
    """The profile with these treatments learned at each of its roles, as many in a step as the roles have layers.

    A step that fails, since a treatment does not fit its layer or since it is too much at once, is split in two: so the
    treatment that is at fault alone is refused.

    Args:
        profile: what is known.
        treatments: what is to be learned of each role.
        run: profiles a plan on the target.
        timed_steps: how many steps are timed at most.
    """
    lessons = _Lessons(profile, run, timed_steps)
    left = [list(of_role) for of_role in treatments]
    while any(left):
        lesson = []
        for number, role in enumerate(profile.roles):
            count = len(role.layer_fqns)
            lesson += [(number, treatment) for treatment in left[number][:count]]
            del left[number][:count]
        lessons.give(tuple(lesson), everywhere=True)
    return lessons.learned()


class _Lessons:
    def __init__(self, profile: CostProfile, run: Run, timed_steps: int) -> None:
        self._profile = profile
        self._run = run
        self._timed_steps = timed_steps
        self._costs: list[dict[Treatment, LayerCost | None]] = [dict(role.costs) for role in profile.roles]
        self._refusals = [dict(role.refusals) for role in profile.roles]
        self._reserved_peaks = [*profile.reserved_peaks]
        self._unheld_ends = dict(profile.unheld_ends)
        self._steps_run = profile.steps_run
        # Where bytes depend on data, what the optimizer's first and second step hold are two things.
        self._with_optimizer = any(role.depends_on_data for role in profile.roles)

    def learned(self) -> CostProfile:
        """The profile with all that was learned."""
        roles = tuple(
            replace(role, costs=costs, refusals=refusals)
            for role, costs, refusals in zip(self._profile.roles, self._costs, self._refusals, strict=True)
        )
        return replace(
            self._profile,
            roles=roles,
            reserved_peaks=tuple(self._reserved_peaks),
            unheld_ends=self._unheld_ends,
            steps_run=self._steps_run,
        )

    def give(self, lesson: _Lesson, *, everywhere: bool) -> None:
        """Runs a step that teaches the treatments of a lesson, or several if that one fails.

        Args:
            lesson: at most as many treatments for each role as it has layers.
            everywhere: use all layers, so that times are medians over several; else each treatment gets one layer.
        """
        layers_of = self._layers_of(lesson, everywhere=everywhere)
        design = dict.fromkeys((fqn for role in self._profile.roles for fqn in role.layer_fqns), BASE)
        for (_, treatment), fqns in layers_of.items():
            design |= dict.fromkeys(fqns, treatment)
        try:
            profiled = self._run(self._request(Plan.from_treatments(design, compile=self._profile.compile), lesson))
        except (DeviceMemoryError, PlanError) as error:
            if len(lesson) > 1:
                half = len(lesson) // 2
                self.give(lesson[:half], everywhere=False)
                self.give(lesson[half:], everywhere=False)
                return
            ((number, treatment),) = lesson
            self._costs[number][treatment] = None
            self._refusals[number][treatment] = Refusal(str(error), no_room=isinstance(error, DeviceMemoryError))
            return
        for step in (profiled.first, profiled.steady):
            if step is not None:
                check_same_calls(self._profile.steady, step)
        self._unheld_ends |= unheld_ends(profiled.steady)
        if (peak := reserved_peak(profiled)) is not None:
            self._reserved_peaks.append(peak)
        steady = calls_of(without_frees(profiled.steady))
        first = steady if profiled.first is None else calls_of(without_frees(profiled.first))
        for (number, treatment), fqns in layers_of.items():
            self._costs[number][treatment] = merged(fqns, first, steady)

    def _request(self, plan: Plan, lesson: _Lesson) -> ProfilePlan:
        recorded_steps = 1 + int(self._with_optimizer)
        at_one_role = max(sum(number == role for role, _ in lesson) for number, _ in lesson)
        timed_steps = max(1, min(self._timed_steps, STEPS_PER_TREATMENT * at_one_role - recorded_steps))
        self._steps_run += recorded_steps + timed_steps
        return ProfilePlan(dump_plan(plan, with_provenance=False), self._with_optimizer, timed_steps)

    def _layers_of(self, lesson: _Lesson, *, everywhere: bool) -> dict[tuple[int, Treatment], list[str]]:
        layers_of: dict[tuple[int, Treatment], list[str]] = {item: [] for item in lesson}
        for number, role in enumerate(self._profile.roles):
            items = [item for item in lesson if item[0] == number]
            places = role.layer_fqns if everywhere else role.layer_fqns[: len(items)]
            for position, fqn in enumerate(places if items else ()):
                layers_of[items[position % len(items)]].append(fqn)
        return layers_of


def merged(
    fqns: Sequence[str], first: Mapping[str, tuple[CallCost, ...]], steady: Mapping[str, tuple[CallCost, ...]]
) -> LayerCost:
    """One cost of layers that had the same treatment: highest bytes, median times, what any of them holds."""
    return LayerCost(_merged_calls([first[fqn] for fqn in fqns]), _merged_calls([steady[fqn] for fqn in fqns]))


def _merged_calls(of_layers: Sequence[tuple[CallCost, ...]]) -> tuple[CallCost, ...]:
    return tuple(
        CallCost(
            _merged_slot([call.forward for call in calls]),
            _merged_slot(backward) if (backward := [c.backward for c in calls if c.backward is not None]) else None,
            tuple(map(any, zip(*(call.holds_input for call in calls), strict=True))),
            tuple(map(any, zip(*(call.holds_output for call in calls), strict=True))),
            min((call.left for call in calls), key=lambda left: sum(one.size_bytes for one in left)),
        )
        for calls in zip(*of_layers, strict=True)
    )


def _merged_slot(slots: Sequence[Slot]) -> Slot:
    return replace(
        slots[0],
        delta_bytes=max(slot.delta_bytes for slot in slots),
        peak_bytes=max(slot.peak_bytes for slot in slots),
        step_time_s=statistics.median(slot.step_time_s for slot in slots),
    )
