"""A stack with corrected times: what the solver is asked again and again as the belief in times changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from actune.cost.solver import solve_exact
from actune.cost.solver.problem import LayerChoices, Option, Problem
from actune.cost.stack import Stack
from actune.cost.time_parts import Correction, TimePart, outside_of_layers
from actune.errors import InfeasibleBudgetError
from actune.plan import NO_AC, Treatment

Allowed = Callable[[Treatment], bool]


@dataclass(frozen=True, slots=True)
class CorrectableStack:
    """A stack and the part that the time of each of its options belongs to.

    Attributes:
        stack: with the profiled times.
        parts: of each of the problem's layers, option by option.
    """

    stack: Stack
    parts: tuple[tuple[TimePart, ...], ...]

    @classmethod
    def of(cls, stack: Stack) -> CorrectableStack:
        """Finds the parts."""
        profile = stack.model.profile
        names = {fqn: role.class_name for role in profile.roles for fqn in role.layer_fqns}
        return cls(
            stack,
            tuple(
                tuple(TimePart(profile.compile, names[fqn], treatment.canonical()) for treatment in stack.menus[fqn])
                for fqn, _ in stack.calls
            ),
        )

    @property
    def all_parts(self) -> tuple[TimePart, ...]:
        """Whatever some plan's step time has in it, each once; in one order, as what is drawn depends on it."""
        parts = (outside_of_layers(self.stack.model), *(part for layer in self.parts for part in layer))
        return tuple(dict.fromkeys(parts))

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """Whatever some layer may get, in the order of the menus."""
        return tuple(dict.fromkeys(treatment for menu in self.stack.menus.values() for treatment in menu))

    def restricted(self, allowed: Allowed) -> CorrectableStack:
        """With the allowed treatments alone; a layer that would have none left, or only no AC, keeps them all."""
        stack = self.stack
        kept = {}
        for fqn, menu in stack.menus.items():
            numbers = [number for number, treatment in enumerate(menu) if allowed(treatment)]
            is_some = any(menu[number] != NO_AC for number in numbers)
            kept[fqn] = numbers if is_some else [*range(len(menu))]
        layers = tuple(
            replace(layer, options=tuple(layer.options[number] for number in kept[fqn]))
            for (fqn, _), layer in zip(stack.calls, stack.problem.layers, strict=True)
        )
        menus = {fqn: tuple(menu[number] for number in kept[fqn]) for fqn, menu in stack.menus.items()}
        return CorrectableStack(
            replace(stack, menus=menus, problem=replace(stack.problem, layers=layers)),
            tuple(
                tuple(of_layer[number] for number in kept[fqn])
                for (fqn, _), of_layer in zip(stack.calls, self.parts, strict=True)
            ),
        )

    def corrected(self, correction: Correction) -> Stack:
        """The stack with each option's time multiplied by its part's factor."""
        layers = []
        for layer, parts in zip(self.stack.problem.layers, self.parts, strict=True):
            options = tuple(
                Option(option.kept_bytes, option.need_bytes, option.time_s * correction[part])
                for option, part in zip(layer.options, parts, strict=True)
            )
            layers.append(LayerChoices(options, layer.after_bytes, layer.tie))
        base_time_s = self.stack.problem.base_time_s * correction[outside_of_layers(self.stack.model)]
        return replace(self.stack, problem=Problem(tuple(layers), self.stack.problem.floor_bytes, base_time_s))


def fastest_s(stack: Stack, budget_bytes: int) -> float | None:
    """No plan of the stack that fits is faster than this; None if none fits."""
    try:
        return solve_exact(stack.problem, stack.model.allocatable_bytes(budget_bytes)).bound_s
    except InfeasibleBudgetError:
        return None
