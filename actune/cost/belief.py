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
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

from actune.cost.posterior import Equations, Floats, Parts, Posterior, TimeObservation
from actune.cost.time_parts import TimePart

_OF_POLICY, _OF_POLICY_AND_CLASS, _OF_TREATMENT_AND_CLASS, _OWN = 0.5, 0.4, 0.05, 0.05
"""Shares of θ's variance, within one compile mode."""
_OF_MODE = 1.0
"""On top of that for every mode but the first: a compiler may speed up all that there is by a fifth. One mode has no
such term, since a factor of everything cancels in ratios."""


class StepTimeBelief:
    """The belief over the factors of all parts that it was told of.

    Attributes:
        observations: what was measured.
    """

    def __init__(self) -> None:
        self.observations: tuple[TimeObservation, ...] = ()
        self._log_noise = 1.0
        self._parts = Parts()
        self._equations = Equations()
        self._loadings: Floats | None = None
        self._posterior: Posterior | None = None

    def know(self, parts: Iterable[TimePart]) -> None:
        """Parts that corrections will be asked for."""
        if self._parts.know(tuple(parts)):
            self._loadings = self._posterior = None

    def learn(self, observations: Sequence[TimeObservation], *, log_noise: float = 1.0) -> None:
        """All that was measured, in place of what was learned before.

        What was learned before and comes first again is not worked out anew.

        Args:
            log_noise: what the observations' errors are multiplied by.
        """
        known = len(self.observations)
        if tuple(observations[:known]) != self.observations:
            self._equations, known = Equations(), 0
        for observation in observations[known:]:
            self.know(observation.plan.parts)
            self.know(observation.reference.parts)
            self._equations.add(observation, self._parts)
        self.observations = tuple(observations)
        self._log_noise = log_noise
        self._posterior = None

    def posterior(self) -> Posterior:
        """What is believed now."""
        if self._loadings is None:
            self._loadings = _loadings(tuple(self._parts.numbers))
        if self._posterior is None:
            self._posterior = Posterior(self._parts, self._loadings, self._equations, log_noise=self._log_noise)
        return self._posterior


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
