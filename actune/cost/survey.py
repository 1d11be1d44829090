"""The survey: which plans are profiled, so that a few steps teach what every treatment costs at every layer.

A step under one plan for all layers shows which layers behave alike. Then the treatments to learn are spread over the
layers of a role, so that one step teaches as many of them as the role has layers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actune.cost.inference import inferred_costs
from actune.cost.profile import (
    CallCost,
    CostProfile,
    LayerCost,
    LayerRole,
    calls_of,
    reserve_share,
    unheld_ends,
    without_frees,
)
from actune.errors import DeviceMemoryError
from actune.plan import NO_AC, CompileMode, Plan, Treatment, dump_plan
from actune.records import ModelStructure
from actune.step_profile import PlanProfiled, ProfilePlan, Slot

BASE = Treatment("full")
"""What all layers get in the first step: no plan needs much less, so it runs where any does."""

STEPS_PER_TREATMENT = 3
"""How many steps may be run for each treatment that a step teaches; at least one of them is timed."""

Run = Callable[[ProfilePlan], PlanProfiled]


def begin_survey(
    structure: ModelStructure, run: Run, *, compile: CompileMode = "off", timed_steps: int = 3
) -> CostProfile:
    """The frame, the roles, and what BASE costs.

    Args:
        structure: the target's layers.
        run: profiles a plan on the target.
        compile: of the plans to predict.
        timed_steps: how many steps are timed.

    Raises:
        DeviceMemoryError: the device has no room even for BASE.
    """
    plan = Plan.from_treatments(dict.fromkeys(structure.layer_fqns, BASE), compile=compile)
    profiled = run(ProfilePlan(dump_plan(plan, with_provenance=False), with_optimizer=True, timed_steps=timed_steps))
    assert profiled.first is not None
    first_step, steady_step = without_frees(profiled.first), without_frees(profiled.steady)
    first, steady = calls_of(first_step), calls_of(steady_step)
    roles: list[LayerRole] = []
    for layer_class in structure.classes:
        called = [fqn for fqn in layer_class.layer_fqns if fqn in steady]
        depends_on_data = any(_bytes_of(first[fqn]) != _bytes_of(steady[fqn]) for fqn in called)
        members: dict[object, list[str]] = {}
        for fqn in called:
            # In one graph for all the compiler moves work across layers: where a layer stands matters.
            alone = depends_on_data or compile == "model"
            members.setdefault(fqn if alone else _bytes_of(steady[fqn]), []).append(fqn)
        roles += [
            LayerRole(tuple(fqns), layer_class.name, depends_on_data, {BASE: _merged(fqns, first, steady)})
            for fqns in members.values()
        ]
    return CostProfile(
        compile,
        first_step,
        steady_step,
        tuple(roles),
        (reserve_share(profiled.steady),),
        unheld_ends(profiled.steady),
        steps_run=2 + timed_steps,
    )


def extend_survey(
    profile: CostProfile, wanted: Mapping[str, Sequence[Treatment]], run: Run, *, timed_steps: int = 3
) -> CostProfile:
    """The profile with more treatments in it.

    Args:
        profile: what is known.
        wanted: treatments by layer FQN; what is known already is not run again.
        run: profiles a plan on the target.
        timed_steps: how many steps are timed at most.

    Raises:
        PlanError: a treatment does not fit its layer.
    """
    asked = [_unknown(role, wanted) for role in profile.roles]
    if not any(asked):
        return profile
    leaders = [_leader(profile, role) for role in profile.roles]
    proofs = [
        treatments if leader is role or NO_AC not in (*treatments, *role.costs) else treatments[:1]
        for role, leader, treatments in zip(profile.roles, leaders, asked, strict=True)
    ]
    profile = _with_inferred(_learn(profile, proofs, run, timed_steps), leaders, asked)
    rest = [
        [treatment for treatment in treatments if treatment not in role.costs]
        for role, treatments in zip(profile.roles, asked, strict=True)
    ]
    return _learn(profile, rest, run, timed_steps)


def _leader(profile: CostProfile, role: LayerRole) -> LayerRole:
    """The largest role of the same class, from which the others may be inferred; itself where none can be."""
    if role.depends_on_data or profile.compile == "model":
        return role
    of_class = [other for other in profile.roles if other.class_name == role.class_name]
    return max(of_class, key=lambda other: len(other.layer_fqns))


def _with_inferred(profile: CostProfile, leaders: Sequence[LayerRole], asked: Sequence[list[Treatment]]) -> CostProfile:
    """The profile with what can be inferred of the roles that are not their classes' leaders."""
    roles = []
    for role, leader, treatments in zip(profile.roles, leaders, asked, strict=True):
        now = profile.role_of(leader.layer_fqns[0])
        inferred = inferred_costs(role, now, treatments, BASE) if now is not role else {}
        roles.append(replace(role, costs=inferred | dict(role.costs)))
    return replace(profile, roles=tuple(roles))


def _learn(profile: CostProfile, treatments: Sequence[list[Treatment]], run: Run, timed_steps: int) -> CostProfile:
    """The profile with these treatments learned at each of its roles."""
    pending = [_Pending(role, list(of_role)) for role, of_role in zip(profile.roles, treatments, strict=True)]
    learned: list[dict[Treatment, LayerCost | None]] = [dict(role.costs) for role in profile.roles]
    steps_run = profile.steps_run
    ends = dict(profile.unheld_ends)
    shares = [*profile.reserve_shares]
    # Where bytes depend on data, what the optimizer's first and second step hold are two things.
    with_optimizer = any(role.depends_on_data for role in profile.roles)
    while any(role.treatments for role in pending):
        design = {fqn: treatment for role in pending for fqn, treatment in role.next_design().items()}
        try:
            toml = dump_plan(Plan.from_treatments(design, compile=profile.compile), with_provenance=False)
            taught = max(len(role.now) for role in pending)
            recorded_steps = 1 + int(with_optimizer)
            timed = max(1, min(timed_steps, STEPS_PER_TREATMENT * taught - recorded_steps))
            profiled = run(ProfilePlan(toml, with_optimizer, timed))
        except DeviceMemoryError:
            # Too many heavy treatments at once: from here on each is tried at one layer, the others at their lightest.
            for role, costs in zip(pending, learned, strict=True):
                if (refused := role.retreat()) is not None:
                    costs[refused] = None
            continue
        steps_run += recorded_steps + timed
        ends |= unheld_ends(profiled.steady)
        shares.append(reserve_share(profiled.steady))
        steady = calls_of(without_frees(profiled.steady))
        first = steady if profiled.first is None else calls_of(without_frees(profiled.first))
        for role, costs in zip(pending, learned, strict=True):
            for treatment, fqns in role.take().items():
                costs[treatment] = _merged(fqns, first, steady)
    roles = tuple(replace(role, costs=costs) for role, costs in zip(profile.roles, learned, strict=True))
    return replace(profile, roles=roles, reserve_shares=tuple(shares), unheld_ends=ends, steps_run=steps_run)


@dataclass(slots=True)
class _Pending:
    """Treatments of a role that are still to be learned, and those that the next step teaches."""

    role: LayerRole
    treatments: list[Treatment]
    one_at_a_time: bool = False
    now: dict[Treatment, list[str]] = field(default_factory=dict)

    def next_design(self) -> dict[str, Treatment]:
        """The treatments of the role's layers in the next step: as many new ones as there are layers."""
        fqns = self.role.layer_fqns
        count = 1 if self.one_at_a_time else len(fqns)
        chosen = self.treatments[:count]
        self.now = {treatment: [] for treatment in chosen}
        design = dict.fromkeys(fqns, BASE)
        for position, fqn in enumerate(fqns[:1] if self.one_at_a_time else fqns):
            if chosen:
                treatment = chosen[position % len(chosen)]
                design[fqn] = treatment
                self.now[treatment].append(fqn)
        return design

    def take(self) -> dict[Treatment, list[str]]:
        """What the step that just ran taught: the layers of each treatment."""
        taken, self.now = self.now, {}
        self.treatments = self.treatments[len(taken) :]
        return taken

    def retreat(self) -> Treatment | None:
        """Ask for less; a treatment that there is no room for even at one layer is given up and returned."""
        self.now = {}
        if not self.one_at_a_time:
            self.one_at_a_time = True
            return None
        return self.treatments.pop(0) if self.treatments else None


def _unknown(role: LayerRole, wanted: Mapping[str, Sequence[Treatment]]) -> list[Treatment]:
    """In the order of the menu, but no AC first: at a stack's first layer it shows when that one's input is freed."""
    asked = dict.fromkeys(t.canonical() for fqn in role.layer_fqns for t in wanted.get(fqn, ()))
    unknown = [treatment for treatment in asked if treatment not in role.costs]
    return sorted(unknown, key=lambda treatment: treatment != NO_AC)


def _bytes_of(calls: tuple[CallCost, ...]) -> tuple[tuple[int, int] | None, ...]:
    """What tells roles apart."""
    slots = [slot for call in calls for slot in (call.forward, call.backward)]
    return tuple(None if slot is None else (slot.delta_bytes, slot.peak_bytes) for slot in slots)


def _merged(
    fqns: Sequence[str], first: Mapping[str, tuple[CallCost, ...]], steady: Mapping[str, tuple[CallCost, ...]]
) -> LayerCost:
    """One cost of layers that had the same treatment: the highest bytes, and the median times."""
    return LayerCost(_merged_calls([first[fqn] for fqn in fqns]), _merged_calls([steady[fqn] for fqn in fqns]))


def _merged_calls(of_layers: Sequence[tuple[CallCost, ...]]) -> tuple[CallCost, ...]:
    return tuple(
        CallCost(
            _merged_slot([call.forward for call in calls]),
            _merged_slot(backward) if (backward := [c.backward for c in calls if c.backward is not None]) else None,
            calls[0].holds_input,
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
