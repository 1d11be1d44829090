"""A model's stack of layers as a solver's problem, and the solver's choices as plans."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from actune.cost.lessons import BASE
from actune.cost.lifetimes import SharedTensor
from actune.cost.model import CostModel, Frame, Prediction
from actune.cost.profile import CallCost, CostProfile, LayerCost
from actune.cost.solver.problem import LayerChoices, Option, Problem
from actune.cost.time_parts import outside_s
from actune.errors import CostError
from actune.plan import Plan, Treatment

Menus = Mapping[str, Sequence[Treatment]]
"""The treatments that each layer may get, by its FQN."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers' calls in the order of the forward, each with its choices.

    Attributes:
        model: predicts what the choices come to.
        calls: the layer and the call's number within the layer, for each layer of `problem`.
        menus: what each layer may get, without treatments that were refused there.
        problem: for a solver. Its peaks are the model's own, to the byte, where each layer leaves as much behind after
            its backward under every treatment, as eager layers do. What layers share counts as held by the first.
    """

    model: CostModel
    calls: tuple[tuple[str, int], ...]
    menus: Menus
    problem: Problem = field(repr=False)

    def treatments(self, choice: Sequence[int]) -> dict[str, Treatment]:
        """What a solver's choice gives each layer."""
        return {fqn: self.menus[fqn][option] for (fqn, _), option in zip(self.calls, choice, strict=True)}

    def plan(self, choice: Sequence[int], layer_fqns: Sequence[str]) -> Plan:
        """A solver's choice as a plan for the model's layers, in its canonical form."""
        treatments = self.treatments(choice)
        in_order = {fqn: treatments[fqn] for fqn in layer_fqns if fqn in treatments}
        return Plan.from_treatments(in_order, compile=self.model.profile.compile)

    def predict(self, choice: Sequence[int]) -> Prediction:
        """What the model predicts for a solver's choice."""
        return self.model.predict_treatments(self.treatments(choice))


def stack_of(model: CostModel, menus: Menus) -> Stack:
    """The problem of choosing from the menus.

    Raises:
        UnknownTreatmentError: a treatment of a menu was not profiled.
        CostError: the layers' backwards do not come after all forwards and in the reverse order of them.
    """
    profile = model.profile
    costs: dict[str, dict[Treatment, LayerCost]] = {}
    for role in profile.roles:
        for fqn in role.layer_fqns:
            known = {treatment: role.cost(fqn, treatment) for treatment in menus[fqn]}
            costs[fqn] = {treatment: cost for treatment, cost in known.items() if cost is not None}
            if not costs[fqn]:
                why = (
                    "; ".join(dict.fromkeys(refusal.reason for refusal in role.refusals.values()))
                    or "the menu is empty"
                )
                raise CostError(f"no treatment of the menu can be had at {fqn}: {why}")
    # Of the steady step: it has the optimizer's state, so that the first one peaks higher only in the optimizer itself.
    # Should it ever not, the model still predicts what is chosen.
    levels = _Levels(model, model.steady)
    calls: list[tuple[str, int]] = []
    layers = []
    for slot in profile.steady.slots:
        if slot.kind != "forward":
            continue
        within = sum(fqn == slot.layer_fqn for fqn, _ in calls)
        calls.append((slot.layer_fqn, within))
        layers.append(
            LayerChoices(
                tuple(_option(levels, slot.call, cost.steady[within]) for cost in costs[slot.layer_fqn].values()),
                after_bytes=levels.after_bytes(slot.call),
                tie=slot.layer_fqn,
            )
        )
    problem = Problem(
        layers=tuple(layers),
        floor_bytes=max(_Levels(model, model.first).floor_bytes, levels.floor_bytes),
        base_time_s=outside_s(model),
    )
    return Stack(model, tuple(calls), {fqn: tuple(of_layer) for fqn, of_layer in costs.items()}, problem)


def _option(levels: _Levels, call: int, cost: CallCost) -> Option:
    return Option(
        kept_bytes=levels.kept_bytes(call, cost),
        need_bytes=levels.need_bytes(call, cost),
        time_s=sum(slot.step_time_s for slot in (cost.forward, cost.backward) if slot is not None),
    )


class _Levels:
    """What is held at each slot of a step apart from what treatments make the layers keep.

    Taken from the step under BASE: what its treatments keep is known, and the rest is the same under every plan.
    """

    def __init__(self, model: CostModel, frame: Frame) -> None:
        base: dict[str, tuple[CallCost, ...]] = {}
        for role in model.profile.roles:
            cost = role.costs[BASE]
            assert cost is not None, "the frame itself was taken under BASE"
            base |= dict.fromkeys(role.layer_fqns, cost.first if frame is model.first else cost.steady)
        self._own_input_bytes = _own_input_bytes(frame.shared, _held_outputs(model.profile, frame))
        self._output_bytes = _output_bytes(frame.shared)
        self._base = frame.cost_of_calls(base)
        self._forward_bytes: dict[int, int] = {}
        self._backward_bytes: dict[int, int] = {}
        self._after_bytes: dict[int, int] = {}
        self.floor_bytes = 0
        kept = {call: self.kept_bytes(call, cost) for call, cost in self._base.items()}
        slots = frame.composed(base)
        comes_back = {slot.call for slot in slots if slot.kind == "backward"}
        calls: list[int] = []
        running_bytes = frame.step.live_bytes
        for slot in slots:
            if slot.kind == "backward":
                if not calls or calls[-1] != slot.call:
                    raise CostError(
                        f"the backward of {slot.layer_fqn} does not come in the reverse order of the layers' forwards, "
                        "which the solver needs. Measure plans by `actune measure` instead."
                    )
                self._backward_bytes[slot.call] = running_bytes - sum(kept[call] for call in calls)
                calls.pop()
            else:
                level_bytes = running_bytes - sum(kept[call] for call in calls)
                if slot.kind == "forward":
                    self._forward_bytes[slot.call] = level_bytes
                    if slot.call in comes_back:
                        if self._backward_bytes:
                            raise CostError(
                                f"the forward of {slot.layer_fqn} comes after another layer's backward, as with "
                                "several backwards in one step, which the solver has no answer for. Measure plans by "
                                "`actune measure` instead."
                            )
                        calls.append(slot.call)
                elif calls:
                    highest = level_bytes + slot.peak_bytes
                    self._after_bytes[calls[-1]] = max(self._after_bytes.get(calls[-1], 0), highest)
                else:
                    self.floor_bytes = max(self.floor_bytes, level_bytes + slot.peak_bytes)
            running_bytes += slot.delta_bytes

    def kept_bytes(self, call: int, cost: CallCost) -> int:
        """What a call leaves behind until its backward: less the inputs that are its alone and that it lets go of.

        A call without a backward keeps nothing: what it leaves behind is the same under every treatment.
        """
        if cost.backward is None:
            return 0
        dropped_bytes = sum(
            size_bytes for position, size_bytes in self._own_input_bytes.get(call, ()) if not cost.holds_input[position]
        )
        held_bytes = self._base[call].left_bytes - cost.left_bytes
        return cost.forward.delta_bytes - dropped_bytes + held_bytes

    def need_bytes(self, call: int, cost: CallCost) -> int:
        """The most that is held while a call's forward or backward runs, over what the calls before it keep."""
        forward = self._forward_bytes[call] + cost.forward.peak_bytes
        if cost.backward is None:
            return forward
        kept_bytes = self.kept_bytes(call, cost)
        need_bytes = max(forward, self._backward_bytes[call] + kept_bytes + cost.backward.peak_bytes)
        if held_bytes := self._held_output_bytes(call, cost):
            # What comes after the layers that take the output, which under BASE are the last to hold it.
            need_bytes = max(need_bytes + held_bytes, self.after_bytes(call) + kept_bytes + held_bytes)
        return need_bytes

    def _held_output_bytes(self, call: int, cost: CallCost) -> int:
        """What a call holds of its own outputs until its backward and does not hold under BASE."""
        return sum(
            size_bytes * (cost.holds_output[position] - self._base[call].holds_output[position])
            for position, size_bytes in self._output_bytes.get(call, ())
        )

    def after_bytes(self, call: int) -> int:
        """The most that is held between a call and the next one, over what the calls up to it keep."""
        return self._after_bytes.get(call, 0)


def _held_outputs(profile: CostProfile, frame: Frame) -> set[tuple[int, int]]:
    """The calls that hold an output of their own under some treatment, and the output's position."""
    held: set[tuple[int, int]] = set()
    for role in profile.roles:
        for cost in role.costs.values():
            if cost is not None:
                of_layers = dict.fromkeys(role.layer_fqns, cost.steady)
                for slot_call, call in frame.cost_of_calls(of_layers).items():
                    held |= {(slot_call, position) for position, holds in enumerate(call.holds_output) if holds}
    return held


def _output_bytes(shared_tensors: Sequence[SharedTensor]) -> dict[int, list[tuple[int, int]]]:
    """Position and bytes of each call's outputs."""
    made: dict[int, list[tuple[int, int]]] = {}
    for shared in shared_tensors:
        if shared.maker is not None:
            call, position = shared.maker
            made.setdefault(call, []).append((position, shared.size_bytes))
    return made


def _own_input_bytes(
    shared_tensors: Sequence[SharedTensor], held_outputs: Container[tuple[int, int]]
) -> dict[int, list[tuple[int, int]]]:
    """Position and bytes of each call's inputs that no other call is given, nor holds as its output."""
    own: dict[int, list[tuple[int, int]]] = {}
    for shared in shared_tensors:
        if len(shared.takers) == 1 and shared.maker not in held_outputs:
            call, position = shared.takers[0]
            own.setdefault(call, []).append((position, shared.size_bytes))
    return own
