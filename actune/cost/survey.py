"""The survey: which plans are profiled, so that a few steps teach what every treatment costs at every layer.

A step under one plan for all layers shows which layers behave alike. Then the treatments to learn are spread over the
layers of a role, so that one step teaches as many of them as the role has layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from actune.cost.inference import inferred_costs
from actune.cost.lessons import BASE, Run, learn, merged
from actune.cost.profile import CallCost, CostProfile, LayerRole, calls_of, unheld_ends, without_frees
from actune.cost.reserve import reserved_peak
from actune.cost.same_calls import check_same_calls
from actune.plan import NO_AC, CompileMode, Plan, Treatment, dump_plan
from actune.records import ModelStructure
from actune.step_profile import ProfilePlan


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
        CostError: the two steps don't call the layers alike.
    """
    plan = Plan.from_treatments(dict.fromkeys(structure.layer_fqns, BASE), compile=compile)
    toml = dump_plan(plan, with_provenance=False)
    # Whatever is timed later is compared with this.
    profiled = run(ProfilePlan(toml, with_optimizer=True, timed_steps=timed_steps, settle=True))
    assert profiled.first is not None
    check_same_calls(profiled.steady, profiled.first)
    first_step, steady_step = without_frees(profiled.first), without_frees(profiled.steady)
    first, steady = calls_of(first_step), calls_of(steady_step)
    roles: list[LayerRole] = []
    for layer_class in structure.classes:
        called = [fqn for fqn in layer_class.layer_fqns if fqn in steady]
        depends_on_data = any(_bytes_of(first[fqn]) != _bytes_of(steady[fqn]) for fqn in called)
        members: dict[object, list[str]] = {}
        for fqn in called:
            members.setdefault(fqn if depends_on_data else _kind_of(steady[fqn]), []).append(fqn)
        roles += [
            LayerRole(tuple(fqns), layer_class.name, depends_on_data, {BASE: merged(fqns, first, steady)}, {})
            for fqns in members.values()
        ]
    return CostProfile(
        compile,
        first_step,
        steady_step,
        tuple(roles),
        () if (peak := reserved_peak(profiled)) is None else (peak,),
        unheld_ends(profiled.steady),
        steps_run=2 + profiled.settling_steps + timed_steps,
    )


def extend_survey(
    profile: CostProfile, wanted: Mapping[str, Sequence[Treatment]], run: Run, *, timed_steps: int = 3
) -> CostProfile:
    """The profile with more treatments in it.

    What does not run at a layer, or has no room there, is known as refused.

    Args:
        profile: what is known.
        wanted: treatments by layer FQN; what is known already is not run again.
        run: profiles a plan on the target.
        timed_steps: how many steps are timed at most.

    Raises:
        CostError: a step does not call the layers as those did that the profile was begun with.
    """
    asked = [_unknown(role, wanted) for role in profile.roles]
    if not any(asked):
        return profile
    leaders = [_leader(profile, role) for role in profile.roles]
    proofs = [
        treatments if leader is role or NO_AC not in (*treatments, *role.costs) else treatments[:1]
        for role, leader, treatments in zip(profile.roles, leaders, asked, strict=True)
    ]
    profile = _with_inferred(learn(profile, proofs, run, timed_steps), leaders, asked)
    rest = [
        [treatment for treatment in treatments if treatment not in role.costs]
        for role, treatments in zip(profile.roles, asked, strict=True)
    ]
    return learn(profile, rest, run, timed_steps)


def _leader(profile: CostProfile, role: LayerRole) -> LayerRole:
    """The largest role of the same class, from which the others may be inferred; itself where none can be."""
    if role.depends_on_data:
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


def _unknown(role: LayerRole, wanted: Mapping[str, Sequence[Treatment]]) -> list[Treatment]:
    """In the order of the menu, but no AC first: at a stack's first layer it shows when that one's input is freed."""
    asked = dict.fromkeys(t.canonical() for fqn in role.layer_fqns for t in wanted.get(fqn, ()))
    unknown = [treatment for treatment in asked if treatment not in role.costs]
    return sorted(unknown, key=lambda treatment: treatment != NO_AC)


def _kind_of(calls: tuple[CallCost, ...]) -> object:
    """What tells roles apart: bytes, and how many tensors are given and returned and which of them are held."""
    return _bytes_of(calls), tuple((call.holds_input, call.holds_output) for call in calls)


def _bytes_of(calls: tuple[CallCost, ...]) -> tuple[tuple[int, int] | None, ...]:
    slots = [slot for call in calls for slot in (call.forward, call.backward)]
    return tuple(None if slot is None else (slot.delta_bytes, slot.peak_bytes) for slot in slots)
