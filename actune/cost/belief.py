"""What is believed of step times: the profile, corrected by every trial that was measured.

A step's time is a sum over its layers, so a plan's time is linear in the factors by which the profile is off:
T(plan) = Σ x_part · (1 + θ_part) with x the profiled seconds. A trial measures the ratio r of its plan's time to the
reference's, which says T(plan) · (1 + δ_plan) − r · T(reference) · (1 + δ_reference) = noise: but for θ · δ linear too.
With a Gaussian prior the posterior is then Gaussian and exact (Rasmussen and Williams, Gaussian Processes for Machine
Learning, 2.1), in a millisecond, from the first trial on.

The prior is a sum of terms, so that what a trial teaches spreads: θ has a share for the policy, one for the policy at a
class of layers, one for the treatment at a class whatever the compile mode, one of its own, and a term for a compile
mode other than the first. δ is what a plan's time is off from any such sum. How large δ is as a whole is learned too:
each of a few scales is weighted by the likelihood that it gives to the measurements. How large θ is is not: that
treatments which were measured agree with the profile says nothing of those that were not, and a belief that takes it
for a sign ends searches too early.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from actune.cost.time_parts import Correction, TimePart

Floats = npt.NDArray[np.float64]

PROFILE_ERROR = 0.2
"""Standard deviation of θ within a compile mode: to be off by a third is no surprise, to be off by half is one."""
PLAN_ERRORS = (0.001, 0.004)
"""Standard deviations of δ that are weighed."""
SMALLEST_FACTOR = 0.05
SMALLEST_LOG_ERROR = 5e-4

_OF_POLICY, _OF_POLICY_AND_CLASS, _OF_TREATMENT_AND_CLASS, _OWN = 0.5, 0.4, 0.05, 0.05
"""Shares of θ's variance, within one compile mode."""
_OF_MODE = 1.0
"""On top of that for every mode but the first: a compiler may speed up all that there is by a fifth. One mode has no
such term, since a factor of everything cancels in ratios."""


@dataclass(frozen=True, slots=True)
class KnownPlan:
    """A plan whose parts were profiled.

    Attributes:
        name: any; what a plan is off from the sum of its parts goes by it.
        parts: in profiled seconds.
    """

    name: str
    parts: Mapping[TimePart, float]


@dataclass(frozen=True, slots=True)
class TimeObservation:
    """A plan's measured step time over that of the reference plan.

    Attributes:
        relative_step_time: measured.
        log_error: standard error of its logarithm.
    """

    plan: KnownPlan
    reference: KnownPlan
    relative_step_time: float
    log_error: float


@dataclass(frozen=True, slots=True, eq=False)
class _Scale:
    """The posterior under one scale of δ.

    Attributes:
        plan_error: standard deviation of δ.
        gain: what each observation moves (θ, δ) by; one column for each.
        log_weight: the log likelihood of the observations.
    """

    plan_error: float
    gain: Floats
    log_weight: float


@dataclass(slots=True)
class StepTimeBelief:
    """The belief over the factors of all parts that it was told of.

    Attributes:
        observations: what was measured.
    """

    observations: tuple[TimeObservation, ...] = ()
    _parts: dict[TimePart, int] = field(default_factory=dict)
    _posterior: Posterior | None = None

    def know(self, parts: Iterable[TimePart]) -> None:
        """Parts that corrections will be asked for."""
        for part in parts:
            if part not in self._parts:
                self._parts[part] = len(self._parts)
                self._posterior = None

    def learn(self, observations: Sequence[TimeObservation]) -> None:
        """All that was measured, in place of what was learned before."""
        for observation in observations:
            self.know(observation.plan.parts)
            self.know(observation.reference.parts)
        self.observations = tuple(observations)
        self._posterior = None

    def posterior(self) -> Posterior:
        """What is believed now."""
        if self._posterior is None:
            self._posterior = Posterior(tuple(self._parts), self.observations)
        return self._posterior


class Draws:
    """Possible truths: a factor for each part, and what each measured plan is off from the sum of its parts."""

    def __init__(self, parts: Sequence[TimePart], plans: Sequence[str], values: Floats) -> None:
        self._parts = {part: number for number, part in enumerate(parts)}
        self._plans = {plan: number for number, plan in enumerate(plans)}
        self._factors = np.maximum(SMALLEST_FACTOR, 1.0 + values[:, : len(parts)])
        self._of_plans = 1.0 + values[:, len(parts) :]

    def __len__(self) -> int:
        return len(self._factors)

    def correction(self, number: int) -> Correction:
        """The factors of one draw."""
        return dict(zip(self._parts, self._factors[number].tolist(), strict=True))

    def step_times_s(self, plans: Sequence[KnownPlan]) -> Floats:
        """Step times in seconds; one row per plan, one column per draw."""
        rows = np.zeros((len(plans), len(self._parts)))
        for row, plan in enumerate(plans):
            for part, time_s in plan.parts.items():
                rows[row, self._parts[part]] = time_s
        times = rows @ self._factors.T
        for row, plan in enumerate(plans):
            if plan.name in self._plans:
                times[row] *= self._of_plans[:, self._plans[plan.name]]
        return times

    def relative(self, plans: Sequence[KnownPlan], reference: KnownPlan, best_s: Floats) -> Floats:
        """Step times over the reference's; one row per plan and a last one for the best plan, one column per draw."""
        return np.vstack([self.step_times_s(plans), best_s]) / self.of_plan_s(reference)

    def of_plan_s(self, plan: KnownPlan) -> Floats:
        """A plan's step time in seconds, draw by draw."""
        return self.step_times_s([plan]).ravel()


class Posterior:
    """The belief as it is after some observations: a mixture over scales of Gaussians."""

    def __init__(self, parts: tuple[TimePart, ...], observations: Sequence[TimeObservation]) -> None:
        self._parts = parts
        self._loadings = _loadings(parts)
        self._plans = tuple(dict.fromkeys(p.name for seen in observations for p in (seen.reference, seen.plan)))
        self._rows, self._off, self._noise = _equations(parts, self._plans, observations)
        self._scales = [self._condition(plan_error) for plan_error in PLAN_ERRORS]
        log_weights = np.array([scale.log_weight for scale in self._scales])
        weights = np.exp(log_weights - log_weights.max())  # likelihoods of a thousand trials are beyond any float
        self._weights = weights / weights.sum()

    def draws(self, count: int, *seed: int) -> Draws:
        """So many draws from the mixture; the same for the same seed.

        Each is one from the prior, moved by what the observations say it is off: Matheron's rule (Wilson et al.,
        Efficiently Sampling Functions from Gaussian Process Posteriors, 2020), which needs no root of the posterior's
        covariance.
        """
        rng = np.random.default_rng(seed)
        theta = rng.standard_normal((count, self._loadings.shape[1])) @ self._loadings.T
        delta = rng.standard_normal((count, len(self._plans)))
        noise = rng.standard_normal((count, len(self._off))) * self._noise
        of_scale = rng.choice(len(self._scales), size=count, p=self._weights)
        values = np.zeros((count, len(self._parts) + len(self._plans)))
        for number in np.unique(of_scale):
            scale, rows = self._scales[number], of_scale == number
            prior = np.hstack([theta[rows] * PROFILE_ERROR, delta[rows] * scale.plan_error])
            values[rows] = prior + (self._off - prior @ self._rows.T - noise[rows]) @ scale.gain.T
        return Draws(self._parts, self._plans, values)

    def mean(self) -> Draws:
        """The mean, as a single draw."""
        means = np.array([scale.gain @ self._off for scale in self._scales])
        return Draws(self._parts, self._plans, (self._weights @ means)[None, :])

    def _condition(self, plan_error: float) -> _Scale:
        count = len(self._parts)
        prior = np.zeros((count + len(self._plans),) * 2)
        prior[:count, :count] = self._loadings @ self._loadings.T * PROFILE_ERROR**2
        prior[count:, count:] = np.eye(len(self._plans)) * plan_error**2
        cross = prior @ self._rows.T
        inner = np.linalg.cholesky(self._rows @ cross + np.diag(self._noise**2))
        whitened = np.linalg.solve(inner, np.column_stack([self._off, cross.T]))
        log_weight = -0.5 * float(whitened[:, 0] @ whitened[:, 0]) - float(np.log(np.diag(inner)).sum())
        return _Scale(plan_error, np.linalg.solve(inner.T, whitened[:, 1:]).T, log_weight)


def _equations(
    parts: Sequence[TimePart], plans: Sequence[str], observations: Sequence[TimeObservation]
) -> tuple[Floats, Floats, Floats]:
    """Rows @ (θ, δ) = off, but for noise of these standard deviations; in units of the reference's profiled time."""
    numbers = {part: number for number, part in enumerate(parts)}
    of_plan = {plan: len(parts) + number for number, plan in enumerate(plans)}
    rows = np.zeros((len(observations), len(parts) + len(plans)))
    off, noise = np.zeros(len(observations)), np.zeros(len(observations))
    for row, seen in enumerate(observations):
        reference_s = sum(seen.reference.parts.values())
        profiled = sum(seen.plan.parts.values()) / reference_s
        for part, time_s in seen.plan.parts.items():
            rows[row, numbers[part]] += time_s / reference_s
        for part, time_s in seen.reference.parts.items():
            rows[row, numbers[part]] -= seen.relative_step_time * time_s / reference_s
        rows[row, of_plan[seen.plan.name]] += profiled
        rows[row, of_plan[seen.reference.name]] -= seen.relative_step_time
        off[row] = seen.relative_step_time - profiled
        noise[row] = seen.relative_step_time * max(seen.log_error, SMALLEST_LOG_ERROR)
    return rows, off, noise


def _loadings(parts: Sequence[TimePart]) -> Floats:
    """θ = loadings @ independent standard normal values: one column for each thing that parts have in common."""
    policies = [part.treatment.policy if part.treatment else "" for part in parts]
    columns = [
        *_columns(_OF_POLICY, policies),
        *_columns(_OF_POLICY_AND_CLASS, [(p, part.class_name) for p, part in zip(policies, parts, strict=True)]),
        *_columns(_OF_TREATMENT_AND_CLASS, [(part.treatment, part.class_name) for part in parts]),
        *_columns(_OF_MODE, [part.compile for part in parts])[1:],
        *_columns(_OWN, parts),
    ]
    return np.array(columns).reshape(len(columns), len(parts)).T


def _columns(share: float, names: Sequence[object]) -> list[Floats]:
    """A column for each name, with the root of the share where a part has that name."""
    return [
        math.sqrt(share) * np.array([other == name for other in names], np.float64) for name in dict.fromkeys(names)
    ]


def as_row(values: Sequence[float]) -> Floats:
    """A matrix of one row."""
    return np.array([values])


def worth_of(relative: Floats, candidates: Sequence[int], best: int, log_error: float) -> Floats:
    """What measuring each candidate is worth, as a share of the reference's step time.

    It is the sum of two: how much faster than the best plan the candidate itself is expected to be, where it is faster
    (expected improvement, Jones, Schonlau and Welch 1998), and by how much what it teaches is expected to lower the
    least mean of all plans (the knowledge gradient for correlated normal beliefs, Frazier, Powell and Dayanik 2009).

    Args:
        relative: step times over the reference's; one row per plan, one column per draw.
        candidates: rows of the plans that may be measured.
        best: row of the best plan so far.
        log_error: standard error of the logarithm of a measured ratio.
    """
    rows = np.array(candidates, np.intp)
    mean = relative.mean(axis=1)
    centred = relative - mean[:, None]
    covariance = centred @ centred[rows].T / relative.shape[1]
    variance = covariance[rows, np.arange(len(rows))]
    moved = covariance / np.sqrt(variance + (log_error * mean[rows]) ** 2)
    least = (mean[:, None, None] + moved[:, :, None] * _NORMAL_POINTS).min(axis=0).mean(axis=1)
    improvement = np.maximum(0.0, relative[best] - relative[rows]).mean(axis=1)
    result: Floats = improvement + mean.min() - least
    return result


def gain_at(step_times_s: Floats, best_s: Floats, confidence: float) -> float:
    """By what share of the best plan's step time the fastest plan is faster at most, with that confidence.

    Args:
        step_times_s: of the plans, one row each, and one column per draw.
        best_s: of the best plan in each draw.
    """
    gains = np.maximum(0.0, 1.0 - step_times_s.min(axis=0) / best_s)
    return float(np.quantile(gains, confidence))


_NORMAL_POINTS = np.array([NormalDist().inv_cdf((number + 0.5) / 32) for number in range(32)])
