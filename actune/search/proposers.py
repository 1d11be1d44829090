"""What turns one of Optuna's trials into a plan: drawn from what is believed, or from parameters that it samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from actune.errors import UsageError
from actune.plan import Plan
from actune.search.choice import Choice

THOMPSON, PER_LAYER = "thompson", "per-layer"
SAMPLERS: Mapping[str, str] = {
    THOMPSON: "exact optima of step times drawn from what is believed of them",
    "tpe": "Optuna's TPE over a few numbers that the solver decodes",
    "random": "the same numbers at random",
    "gp": "the same numbers by a Gaussian process; brings torch into the coordinator",
    PER_LAYER: "TPE over one category per layer, without the solver",
}


def check_sampler(name: str) -> str:
    """The name, if there is such a sampler.

    Raises:
        UsageError: there is none.
    """
    if name not in SAMPLERS:
        raise UsageError(f"sampler '{name}' is not known. Expected one of: {', '.join(SAMPLERS)}.")
    return name


class PlanSource(Protocol):
    """Parameters on one side, plans on the other. A source without parameters finds plans by itself."""

    def choices(self, values: Mapping[str, Any]) -> list[Choice]:
        """The parameters, given the values chosen so far."""
        ...

    def decode(self, values: Mapping[str, Any], number: int) -> Plan:
        """The plan of a trial: of its parameters, and of its number where chance has a part in it."""
        ...

    def encode(self, plan: Plan) -> dict[str, Any] | None:
        """Parameters from which a sampler learns what it may of a plan that is given; None where it has no place."""
        ...


class AdvisedPlans:
    """Plans from what is believed; nothing is sampled."""

    def __init__(self, plan_for: Callable[[int], Plan]) -> None:
        """Args: plan_for: the plan for the trial of a number."""
        self._plan_for = plan_for

    def choices(self, values: Mapping[str, Any]) -> list[Choice]:
        """None."""
        return []

    def decode(self, values: Mapping[str, Any], number: int) -> Plan:
        """The plan for the trial's number."""
        return self._plan_for(number)

    def encode(self, plan: Plan) -> dict[str, Any] | None:
        """None."""
        return None


def suggest(trial: optuna.Trial, choice: Choice) -> Any:
    """The sampler's value of a parameter, or what the queue had fixed."""
    if choice.labels is not None:
        return trial.suggest_categorical(choice.name, choice.labels)
    if choice.span is not None:
        return trial.suggest_float(choice.name, *choice.span)
    return trial.suggest_int(choice.name, 0, choice.high or 0)


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Optuna's sampler of that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, deterministic_objective=False)
        if name in (THOMPSON, "random"):
            return RandomSampler(seed=seed)
        # group: parameters that not every trial has, as those of a compile mode, are sampled jointly all the same.
        # Without it one trial without parameters (a preset outside of the space) leaves each to be sampled on its own.
        return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
