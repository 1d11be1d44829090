"""What a role's treatments cost, from another role of the same class: what sets two places apart is a constant.

The last layer of a decoder begins a gradient that the others add to; beside another one a larger next layer is
gathered. All of that is there under every treatment. So a role's costs are those of another role of its class, shifted
by what the two differ by under BASE. That this holds is checked, not assumed: under no AC, the treatment least like
BASE, a step of the role itself must agree to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from actune.cost.profile import CallCost, LayerCost, LayerRole
from actune.plan import NO_AC, Treatment
from actune.step_profile import Slot


def inferred_costs(
    role: LayerRole, leader: LayerRole, treatments: Iterable[Treatment], base: Treatment
) -> dict[Treatment, LayerCost]:
    """The costs of treatments at a role from those at another one; empty if the check fails or can't be made."""
    if not _holds(role, leader, base):
        return {}
    inferred = {treatment: _shifted(leader.costs.get(treatment), leader, role, base) for treatment in treatments}
    return {treatment: cost for treatment, cost in inferred.items() if cost is not None}


def _holds(role: LayerRole, leader: LayerRole, base: Treatment) -> bool:
    known = role.costs.get(NO_AC)
    expected = _shifted(leader.costs.get(NO_AC), leader, role, base)
    if known is None or expected is None:
        return False
    return all(
        _bytes_of(ours) == _bytes_of(theirs)
        and (call.holds_input, call.holds_output) == (other.holds_input, other.holds_output)
        for calls, others in ((known.first, expected.first), (known.steady, expected.steady))
        for call, other in zip(calls, others, strict=True)
        for ours, theirs in ((call.forward, other.forward), (call.backward, other.backward))
    )


def _bytes_of(slot: Slot | None) -> tuple[int, int] | None:
    return None if slot is None else (slot.delta_bytes, slot.peak_bytes)


def _shifted(cost: LayerCost | None, leader: LayerRole, role: LayerRole, base: Treatment) -> LayerCost | None:
    """The leader's cost at the other role; None where it is not known, or the roles have other calls."""
    there, here = leader.costs.get(base), role.costs.get(base)
    if cost is None or there is None or here is None or len(there.steady) != len(here.steady):
        return None
    first = [_shifted_call(*calls) for calls in zip(cost.first, there.first, here.first, strict=True)]
    steady = [_shifted_call(*calls) for calls in zip(cost.steady, there.steady, here.steady, strict=True)]
    known_first, known_steady = (tuple(call for call in calls if call is not None) for calls in (first, steady))
    if len(known_first) < len(first) or len(known_steady) < len(steady):
        return None
    return LayerCost(known_first, known_steady)


def _shifted_call(cost: CallCost, there: CallCost, here: CallCost) -> CallCost | None:
    forward = _shifted_slot(cost.forward, there.forward, here.forward)
    if forward is None:
        return None
    if cost.backward is None or there.backward is None or here.backward is None:
        return None if cost.backward is not here.backward else cost._replace(forward=forward)
    backward = _shifted_slot(cost.backward, there.backward, here.backward)
    return None if backward is None else cost._replace(forward=forward, backward=backward)


def _shifted_slot(slot: Slot, there: Slot, here: Slot) -> Slot | None:
    delta_bytes = slot.delta_bytes + here.delta_bytes - there.delta_bytes
    peak_bytes = slot.peak_bytes + here.peak_bytes - there.peak_bytes
    if peak_bytes < max(0, delta_bytes):
        return None
    time_s = max(0.0, slot.step_time_s + here.step_time_s - there.step_time_s)
    return replace(slot, delta_bytes=delta_bytes, peak_bytes=peak_bytes, step_time_s=time_s)
