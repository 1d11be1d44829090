"""The posterior of few columns is that of the whole matrix, with a row and a column for each part and each plan."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from actune.cost.belief import StepTimeBelief
from actune.cost.posterior import PLAN_ERRORS, PROFILE_ERROR, Floats, KnownPlan, TimeObservation
from actune.cost.time_parts import TimePart
from actune.plan import NO_AC, Treatment

OUTSIDE = TimePart("off", "", None)
LAYERS = tuple(TimePart("off", "Block", t) for t in (NO_AC, Treatment("full"), Treatment("selective")))
PARTS = (OUTSIDE, *LAYERS)
REFERENCE = KnownPlan("reference", {OUTSIDE: 1.0, LAYERS[1]: 6.0})
LOG_NOISE = 0.01


def plans(count: int) -> list[KnownPlan]:
    rng = random.Random(0)
    return [
        KnownPlan(f"plan {number}", {OUTSIDE: 1.0} | {part: rng.uniform(0.5, 3.0) for part in LAYERS})
        for number in range(count)
    ]


def observations(of: Sequence[KnownPlan]) -> list[TimeObservation]:
    """Some percent off from the profile."""
    rng, reference_s = random.Random(1), sum(REFERENCE.parts.values())
    ratios = [sum(plan.parts.values()) / reference_s * rng.uniform(0.99, 1.01) for plan in of]
    return [TimeObservation(plan, REFERENCE, r, rng.uniform(0.2, 0.6)) for plan, r in zip(of, ratios, strict=True)]


def dense(seen: Sequence[TimeObservation], names: Sequence[str]) -> tuple[Floats, Floats]:
    """Mean and covariance of (θ, δ), by the textbook and with nothing saved: a mixture over the scales of δ."""
    models = []
    for plan_error in PLAN_ERRORS:
        # Each treatment here has a policy of its own, at one class: nothing that two parts have in common.
        prior = np.diag([*[PROFILE_ERROR**2] * len(PARTS), *[plan_error**2] * len(names)])
        rows, off, noise = np.zeros((len(seen), len(prior))), np.zeros(len(seen)), np.zeros(len(seen))
        for row, one in enumerate(seen):
            reference_s, ratio = sum(one.reference.parts.values()), one.relative_step_time
            for part, time_s in one.plan.parts.items():
                rows[row, PARTS.index(part)] += time_s / reference_s
            for part, time_s in one.reference.parts.items():
                rows[row, PARTS.index(part)] -= ratio * time_s / reference_s
            profiled = sum(one.plan.parts.values()) / reference_s
            rows[row, len(PARTS) + names.index(one.plan.name)] += profiled
            rows[row, len(PARTS) + names.index(one.reference.name)] -= ratio
            off[row], noise[row] = ratio - profiled, ratio * one.log_error * LOG_NOISE
        inner = rows @ prior @ rows.T + np.diag(noise**2)
        gain = prior @ rows.T @ np.linalg.inv(inner)
        log_weight = -0.5 * (off @ np.linalg.solve(inner, off) + np.linalg.slogdet(inner)[1])
        models.append((log_weight, gain @ off, prior - gain @ rows @ prior))
    highest = max(log_weight for log_weight, _, _ in models)
    weights = [math.exp(log_weight - highest) for log_weight, _, _ in models]
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(share * of_scale for share, (_, of_scale, _) in zip(shares, models, strict=True))
    spread = sum(
        share * (covariance + np.outer(of_scale - mean, of_scale - mean))
        for share, (_, of_scale, covariance) in zip(shares, models, strict=True)
    )
    return np.asarray(mean), np.asarray(spread)


def belief_of(seen: Sequence[TimeObservation]) -> StepTimeBelief:
    belief = StepTimeBelief()
    belief.know(PARTS)
    belief.learn(seen, log_noise=LOG_NOISE)
    return belief


ONCE = plans(12)
RATIO = sum(ONCE[5].parts.values()) / sum(ONCE[0].parts.values())
CASES = {
    "each plan once": observations(ONCE),
    "some twice": observations([*ONCE, *ONCE[:3]]),
    "one is a reference too": [*observations(ONCE), TimeObservation(ONCE[5], ONCE[0], 1.01 * RATIO, 0.4)],
}


@pytest.mark.parametrize("case", CASES)
def test_means_are_the_dense_ones(case: str) -> None:
    seen = CASES[case]
    names = [REFERENCE.name, *(plan.name for plan in ONCE)]
    mean, _ = dense(seen, names)
    believed = belief_of(seen).posterior().mean()
    correction = believed.correction(0)
    assert [correction[part] for part in PARTS] == pytest.approx(1.0 + mean[: len(PARTS)], abs=1e-9)
    for number, plan in enumerate((REFERENCE, *ONCE)):
        of_parts = sum(time_s * correction[part] for part, time_s in plan.parts.items())
        assert believed.of_plan_s(plan)[0] / of_parts - 1.0 == pytest.approx(mean[len(PARTS) + number], abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_draws_of_what_plans_are_off_have_the_dense_spread(case: str) -> None:
    seen = CASES[case]
    names = [REFERENCE.name, *(plan.name for plan in ONCE)]
    _, covariance = dense(seen, names)
    draws = belief_of(seen).posterior().draws(20_000, 3)
    shown = (REFERENCE, *ONCE[:6])
    off = []
    for plan in shown:
        of_parts = [sum(t * draws.correction(n)[p] for p, t in plan.parts.items()) for n in range(0, 20_000, 10)]
        off.append(draws.of_plan_s(plan)[::10] / np.array(of_parts) - 1.0)
    numbers = [len(PARTS) + names.index(plan.name) for plan in shown]
    expected = np.sqrt(np.diag(covariance))[numbers]
    assert np.std(off, axis=1) == pytest.approx(expected, rel=0.1)


def test_what_is_learned_in_parts_is_what_is_learned_at_once() -> None:
    seen = CASES["some twice"]
    belief = belief_of(seen[:4])
    belief.posterior()
    belief.learn(seen[:9], log_noise=3 * LOG_NOISE)
    belief.know([TimePart("layer", "Block", NO_AC)])
    belief.learn(seen, log_noise=LOG_NOISE)
    at_once = StepTimeBelief()
    at_once.know([*PARTS, TimePart("layer", "Block", NO_AC)])
    at_once.learn(seen, log_noise=LOG_NOISE)
    for plan in (REFERENCE, *ONCE):
        assert belief.posterior().draws(50, 7).of_plan_s(plan) == pytest.approx(
            at_once.posterior().draws(50, 7).of_plan_s(plan)
        )
    other = observations(ONCE[:2])
    belief.learn(other, log_noise=LOG_NOISE)
    anew = StepTimeBelief()
    anew.know([*PARTS, TimePart("layer", "Block", NO_AC)])
    anew.learn(other, log_noise=LOG_NOISE)
    assert belief.posterior().mean().correction(0) == anew.posterior().mean().correction(0)


def test_thousands_of_trials_have_a_likelihood_that_no_float_holds() -> None:
    many = plans(3000)
    draws = belief_of(observations(many)).posterior().draws(4, 0)
    assert np.isfinite(draws.step_times_s([REFERENCE, *many])).all()
