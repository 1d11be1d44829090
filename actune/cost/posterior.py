"""The belief's arithmetic: a Gaussian posterior in time and memory that grow no faster than the number of trials.

Each trial says something of what all plans have in common, θ and the reference's δ, and of one δ that is its plan's
alone. So the observations' covariance is a matrix of few columns, one for each part, plus a diagonal, whose inverse is
Woodbury's (Rasmussen and Williams, Gaussian Processes for Machine Learning, A.3): nothing here has a row and a column
for each trial. A plan that several trials measured counts to what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actune.cost.time_parts import Correction, TimePart

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]

PROFILE_ERROR = 0.2
"""Standard deviation of θ within a compile mode: to be off by a third is no surprise, to be off by half is one."""
PLAN_ERRORS = (0.001, 0.004)
"""Standard deviations of δ that are weighed."""
SMALLEST_FACTOR = 0.05
SMALLEST_LOG_ERROR = 5e-4


@dataclass(frozen=True, slots=True, eq=False)
class KnownPlan:
    """A plan whose parts were profiled. Equal to itself alone, so that it is looked up without looking at its parts.

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
        log_error: standard error of its logarithm, in units of the noise that the observations are learned with.
    """

    plan: KnownPlan
    reference: KnownPlan
    relative_step_time: float
    log_error: float


class Parts:
    """Numbers for parts, in the order in which they came up, and plans as vectors over them."""

    def __init__(self) -> None:
        self.numbers: dict[TimePart, int] = {}
        self._vectors: dict[KnownPlan, Floats] = {}

    def know(self, parts: Sequence[TimePart]) -> bool:
        """Whether some of them are new."""
        before = len(self.numbers)
        for part in parts:
            self.numbers.setdefault(part, len(self.numbers))
        if len(self.numbers) == before:
            return False
        self._vectors.clear()
        return True

    def vector(self, plan: KnownPlan) -> Floats:
        """Seconds by part."""
        vector = self._vectors.get(plan)
        if vector is None:
            vector = self._vectors[plan] = np.zeros(len(self.numbers))
            for part, time_s in plan.parts.items():
                vector[self.numbers[part]] = time_s
        return vector

    def matrix(self, plans: Sequence[KnownPlan]) -> Floats:
        """One row per plan."""
        return np.array([self.vector(plan) for plan in plans]).reshape(len(plans), len(self.numbers))


class Equations:
    """Rows @ (θ, δ) = off, but for noise; in units of the reference's profiled time. Each observation is added once.

    Attributes:
        plans: numbers of all plans by name, in the order in which they came up.
    """

    def __init__(self) -> None:
        self.plans: dict[str, int] = {}
        self._theta = np.zeros((0, 0))
        self._of_plan: list[int] = []
        self._of_reference: list[int] = []
        self._profiled: list[float] = []
        self._measured: list[float] = []
        self._log_error: list[float] = []

    def __len__(self) -> int:
        return len(self._measured)

    def add(self, seen: TimeObservation, parts: Parts) -> None:
        """Takes an observation in, whose parts are known."""
        reference_s = sum(seen.reference.parts.values())
        rows, columns = len(self), len(parts.numbers)
        if rows == len(self._theta) or columns > self._theta.shape[1]:
            larger = np.zeros((max(2 * rows, 16), columns))
            larger[:rows, : self._theta.shape[1]] = self._theta[:rows]
            self._theta = larger
        self._theta[rows] = (
            parts.vector(seen.plan) - seen.relative_step_time * parts.vector(seen.reference)
        ) / reference_s
        self._of_reference.append(self.plans.setdefault(seen.reference.name, len(self.plans)))
        self._of_plan.append(self.plans.setdefault(seen.plan.name, len(self.plans)))
        self._profiled.append(sum(seen.plan.parts.values()) / reference_s)
        self._measured.append(seen.relative_step_time)
        self._log_error.append(seen.log_error)

    def table(self, columns: int, log_noise: float) -> EquationTable:
        """All of them as arrays, over so many parts, under a noise."""
        of_plan, of_reference = np.array(self._of_plan, np.intp), np.array(self._of_reference, np.intp)
        profiled, measured = np.array(self._profiled), np.array(self._measured)
        count = len(self.plans)
        occurs = np.bincount(of_plan, minlength=count) + 2 * np.bincount(of_reference, minlength=count)
        is_own = occurs[of_plan] == 1
        shared = np.flatnonzero(occurs != 1)
        theta = np.zeros((len(self), columns))
        theta[:, : self._theta.shape[1]] = self._theta[: len(self)]
        common = np.zeros((len(self), len(shared)))
        column = np.zeros(count, np.intp)
        column[shared] = np.arange(len(shared))
        rows = np.arange(len(self))
        common[rows[~is_own], column[of_plan[~is_own]]] += profiled[~is_own]
        common[rows, column[of_reference]] -= measured
        own_row = np.full(count, -1, np.intp)
        own_row[of_plan[is_own]] = rows[is_own]
        return EquationTable(
            rows=np.hstack([theta, common]),
            off=measured - profiled,
            noise=measured * np.maximum(np.array(self._log_error) * log_noise, SMALLEST_LOG_ERROR),
            own=np.where(is_own, profiled, 0.0),
            of_plan=of_plan,
            shared=shared,
            column=column,
            own_row=own_row,
        )


@dataclass(frozen=True, slots=True, eq=False)
class EquationTable:
    """The observations as arrays.

    Attributes:
        rows: what each says of what they have in common: θ, then the δ of plans that several of them name.
        off: by how much each is off from the profile.
        noise: standard deviations of `off`.
        own: what each says of a δ that no other names; 0 where there is none.
        of_plan: the number of each one's plan.
        shared: the numbers of the plans whose δ are columns of `rows`.
        column: which one, by the plan's number.
        own_row: by the plan's number, the observation that alone names its δ; -1 without one.
    """

    rows: Floats
    off: Floats
    noise: Floats
    own: Floats
    of_plan: Numbers
    shared: Numbers
    column: Numbers
    own_row: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class _Scale:
    """The posterior under one scale of δ.

    Attributes:
        plan_error: standard deviation of δ.
        variance: of each observation, given what they have in common.
        gain: what each observation moves that by; one column for each.
        log_weight: the log likelihood of the observations.
    """

    plan_error: float
    variance: Floats
    gain: Floats
    log_weight: float


class Draws:
    """Possible truths: a factor for each part, and what each measured plan is off from the sum of its parts."""

    def __init__(self, parts: Parts, plans: Mapping[str, int], common: Floats, deviations: Deviations) -> None:
        self._parts, self._plans = parts, plans
        self._numbers = tuple(parts.numbers)
        self._factors = np.maximum(SMALLEST_FACTOR, 1.0 + common[:, : len(self._numbers)])
        self._deviations = deviations

    def __len__(self) -> int:
        return len(self._factors)

    def correction(self, number: int) -> Correction:
        """The factors of one draw."""
        return dict(zip(self._numbers, self._factors[number].tolist(), strict=True))

    def step_times_s(self, plans: Sequence[KnownPlan]) -> Floats:
        """Step times in seconds; one row per plan, one column per draw."""
        times: Floats = self._parts.matrix(plans) @ self._factors.T
        measured = [row for row, plan in enumerate(plans) if plan.name in self._plans]
        if measured:
            numbers = np.array([self._plans[plans[row].name] for row in measured], np.intp)
            times[measured] *= 1.0 + self._deviations.of_plans(numbers)
        return times

    def relative(self, plans: Sequence[KnownPlan], reference: KnownPlan, best_s: Floats) -> Floats:
        """Step times over the reference's; one row per plan and a last one for the best plan, one column per draw."""
        return np.vstack([self.step_times_s(plans), best_s]) / self.of_plan_s(reference)

    def of_plan_s(self, plan: KnownPlan) -> Floats:
        """A plan's step time in seconds, draw by draw."""
        return self.step_times_s([plan]).ravel()


@dataclass(frozen=True, slots=True, eq=False)
class Deviations:
    """δ under some draws, worked out for the plans that are asked for.

    Attributes:
        table: the observations.
        first_shared: the column of `table.rows` and of `common` where the δ begin.
        common: posterior values of what the observations have in common; one row per draw.
        own: prior values of the δ that one observation names, by observation; one row per draw.
        missed: by how much the prior's draw misses each observation; one row per draw.
        moved: what `common` was moved by; one row per draw.
        gain: of each δ from what of its observation is left unexplained; one row per draw.
    """

    table: EquationTable
    first_shared: int
    common: Floats
    own: Floats
    missed: Floats
    moved: Floats
    gain: Floats

    def of_plans(self, numbers: Numbers) -> Floats:
        """One row per plan, one column per draw."""
        found = np.empty((len(numbers), len(self.common)))
        seen_by = self.table.own_row[numbers]
        is_own = seen_by >= 0
        found[~is_own] = self.common[:, self.first_shared + self.table.column[numbers[~is_own]]].T
        by = seen_by[is_own]
        left = self.missed[:, by] - self.moved @ self.table.rows[by].T
        found[is_own] = (self.own[:, by] + self.gain[:, by] * left).T
        return found


class Posterior:
    """The belief as it is after some observations: a mixture over scales of Gaussians."""

    def __init__(self, parts: Parts, loadings: Floats, equations: Equations, *, log_noise: float) -> None:
        self._parts, self._loadings = parts, loadings
        self._plans = dict(equations.plans)
        self._table = equations.table(len(parts.numbers), log_noise)
        of_theta = PROFILE_ERROR * np.linalg.cholesky(loadings @ loadings.T)
        self._scales = [self._condition(of_theta, plan_error) for plan_error in PLAN_ERRORS]
        log_weights = np.array([scale.log_weight for scale in self._scales])
        weights = np.exp(log_weights - log_weights.max())  # likelihoods of a thousand trials are beyond any float
        self._weights: Floats = weights / weights.sum()

    def draws(self, count: int, *seed: int) -> Draws:
        """So many draws from the mixture; the same for the same seed.

        Each is one from the prior, moved by what the observations say it is off: Matheron's rule (Wilson et al.,
        Efficiently Sampling Functions from Gaussian Process Posteriors, 2020), which needs no root of the posterior's
        covariance.
        """
        table = self._table
        rng = np.random.default_rng(seed)
        theta = rng.standard_normal((count, self._loadings.shape[1])) @ self._loadings.T
        delta = rng.standard_normal((count, len(self._plans)))
        noise = rng.standard_normal((count, len(table.off)))
        of_scale = rng.choice(len(self._scales), size=count, p=self._weights)
        plan_error = np.array(PLAN_ERRORS)[of_scale, None]
        common = np.hstack([theta * PROFILE_ERROR, delta[:, table.shared] * plan_error])
        own = delta[:, table.of_plan] * plan_error
        missed = table.off - common @ table.rows.T - own * table.own - noise * table.noise
        moved = np.empty_like(common)
        gain = np.empty_like(missed)
        for number, scale in enumerate(self._scales):
            rows = of_scale == number
            moved[rows] = missed[rows] @ scale.gain.T
            gain[rows] = self._own_gain(scale)
        common += moved
        deviations = Deviations(table, len(self._parts.numbers), common, own, missed, moved, gain)
        return Draws(self._parts, self._plans, common, deviations)

    def mean(self) -> Draws:
        """The mean, as a single draw."""
        table = self._table
        moved = np.array([scale.gain @ table.off for scale in self._scales])
        common = (self._weights @ moved)[None, :]
        # Over the scales: each one's gain, times what it leaves unexplained.
        left = table.off - moved @ table.rows.T
        own = self._weights @ (np.array([self._own_gain(scale) for scale in self._scales]) * left)
        nothing = np.zeros((1, len(table.off)))
        deviations = Deviations(
            table, len(self._parts.numbers), common, own[None, :], nothing, np.zeros_like(common), nothing
        )
        return Draws(self._parts, self._plans, common, deviations)

    def _own_gain(self, scale: _Scale) -> Floats:
        gain: Floats = scale.plan_error**2 * self._table.own / scale.variance
        return gain

    def _condition(self, of_theta: npt.NDArray[np.floating], plan_error: float) -> _Scale:
        table = self._table
        root = np.eye(table.rows.shape[1]) * plan_error
        root[: len(of_theta), : len(of_theta)] = of_theta
        variance = table.noise**2 + (plan_error * table.own) ** 2
        whitened = table.rows @ root
        weighted = whitened / variance[:, None]
        inner = np.linalg.cholesky(np.eye(len(root)) + whitened.T @ weighted)
        gain = root @ np.linalg.solve(inner.T, np.linalg.solve(inner, weighted.T))
        left = table.off - table.rows @ (gain @ table.off)
        log_weight = -0.5 * float(table.off @ (left / variance))
        log_weight -= 0.5 * float(np.log(variance).sum()) + float(np.log(np.diag(inner)).sum())
        return _Scale(plan_error, variance, gain, log_weight)
