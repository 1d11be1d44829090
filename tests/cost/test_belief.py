"""What is believed of step times: against the textbook, and against worlds that the belief itself describes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from actune.cost.belief import StepTimeBelief, gain_at, worth_of
from actune.cost.posterior import PLAN_ERRORS, PROFILE_ERROR, SMALLEST_FACTOR, Floats, KnownPlan, TimeObservation
from actune.cost.time_parts import TimePart
from actune.plan import NO_AC, CompileMode, Treatment

FULL, SAC, SAC_1 = Treatment("full"), Treatment("selective"), Treatment("selective", save_every_nth_mm=1)
OUTSIDE = TimePart("off", "", None)
LOG_ERROR = 0.003


def of_layers(treatment: Treatment, name: str = "Block", compile: CompileMode = "off") -> TimePart:
    return TimePart(compile, name, treatment)


PARTS = (OUTSIDE, of_layers(NO_AC), of_layers(FULL), of_layers(SAC), of_layers(SAC_1), of_layers(FULL, "Other"))
REFERENCE = KnownPlan("reference", {OUTSIDE: 1.0, of_layers(FULL): 6.0, of_layers(FULL, "Other"): 1.5})
MIXED = KnownPlan("mixed", {OUTSIDE: 1.0, of_layers(NO_AC): 2.0, of_layers(SAC): 2.5, of_layers(FULL, "Other"): 1.5})
OTHER = KnownPlan("other", {OUTSIDE: 1.0, of_layers(SAC_1): 4.5, of_layers(FULL, "Other"): 1.5})
NEVER_MEASURED = KnownPlan("new", {OUTSIDE: 1.0, of_layers(NO_AC): 1.0, of_layers(FULL): 3.0, of_layers(SAC): 1.2})
SEEN = (TimeObservation(MIXED, REFERENCE, 0.9, LOG_ERROR), TimeObservation(OTHER, REFERENCE, 0.7, LOG_ERROR))


def belief_of(observations: Sequence[TimeObservation], parts: Sequence[TimePart] = PARTS) -> StepTimeBelief:
    belief = StepTimeBelief()
    belief.know(parts)
    belief.learn(observations)
    return belief


def observed(plan: KnownPlan, relative_step_time: float) -> TimeObservation:
    return TimeObservation(plan, REFERENCE, relative_step_time, LOG_ERROR)


def prior_covariance(parts: Sequence[TimePart]) -> Floats:
    """Of θ, pair by pair: what two parts have in common says how much of their error they share."""

    def correlation(first: TimePart, second: TimePart) -> float:
        policy = [part.treatment.policy if part.treatment else "" for part in (first, second)]
        is_class = first.class_name == second.class_name
        return (
            0.5 * (policy[0] == policy[1])
            + 0.4 * (policy[0] == policy[1] and is_class)
            + 0.05 * (first.treatment == second.treatment and is_class)
            + 0.05 * (first == second)
            + 1.0 * (first.compile == second.compile != PARTS[0].compile)
        )

    return PROFILE_ERROR**2 * np.array([[correlation(first, second) for second in parts] for first in parts])


def textbook(observations: Sequence[TimeObservation]) -> tuple[Floats, Floats]:
    """Mean and covariance of θ by Bayesian linear regression, in seconds and with δ as part of the noise.

    The posterior precision is that of the prior and that of the data; each scale of δ is a model of its own, weighted
    by its evidence.
    """
    prior = prior_covariance(PARTS)
    design = np.zeros((len(observations), len(PARTS)))
    off_s = np.zeros(len(observations))
    for row, seen in enumerate(observations):
        for part, time_s in seen.plan.parts.items():
            design[row, PARTS.index(part)] += time_s
        for part, time_s in seen.reference.parts.items():
            design[row, PARTS.index(part)] -= seen.relative_step_time * time_s
        off_s[row] = -design[row].sum()
    reference_s = sum(REFERENCE.parts.values())
    models = []
    for plan_error in PLAN_ERRORS:
        noise = np.zeros((len(observations),) * 2)
        for row, seen in enumerate(observations):
            for column, beside in enumerate(observations):
                # All are measured beside one reference, whose own δ they have in common.
                ratios = seen.relative_step_time * beside.relative_step_time
                noise[row, column] = ratios * (plan_error * reference_s) ** 2
            noise[row, row] += (seen.relative_step_time * seen.log_error * reference_s) ** 2
            noise[row, row] += (plan_error * sum(seen.plan.parts.values())) ** 2
        precision = np.linalg.inv(prior) + design.T @ np.linalg.inv(noise) @ design
        of_model = np.linalg.inv(precision)
        centre = of_model @ design.T @ np.linalg.inv(noise) @ off_s
        evidence = design @ prior @ design.T + noise
        log_weight = -0.5 * (off_s @ np.linalg.solve(evidence, off_s) + np.linalg.slogdet(evidence)[1])
        models.append((log_weight, centre, of_model))
    weights = np.exp([log_weight for log_weight, _, _ in models])
    weights /= weights.sum()
    mean = sum((weight * of_model for weight, (_, of_model, _) in zip(weights, models, strict=True)), np.zeros(()))
    covariance: Floats = sum(
        (
            weight * (of_model + np.outer(centre - mean, centre - mean))
            for weight, (_, centre, of_model) in zip(weights, models, strict=True)
        ),
        np.zeros(()),
    )
    return mean, covariance


def factors(belief: StepTimeBelief, count: int, *seed: int) -> Floats:
    """One row per draw, one column per part."""
    draws = belief.posterior().draws(count, *seed)
    return np.array([[draws.correction(number)[part] for part in PARTS] for number in range(len(draws))])


def test_the_mean_is_that_of_the_textbook() -> None:
    mean, _ = textbook(SEEN)
    believed = belief_of(SEEN).posterior().mean().correction(0)
    assert [believed[part] for part in PARTS] == pytest.approx(1.0 + mean, abs=1e-9)
    assert max(abs(mean)) > 0.05


def test_draws_have_the_textbook_s_mean_and_covariance() -> None:
    mean, covariance = textbook(SEEN)
    drawn = factors(belief_of(SEEN), 20_000, 5)
    assert drawn.mean(axis=0) == pytest.approx(1.0 + mean, abs=0.008)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.002)


def test_without_measurements_draws_are_the_prior_s() -> None:
    drawn = factors(belief_of(()), 20_000, 5)
    assert drawn.mean(axis=0) == pytest.approx(np.ones(len(PARTS)), abs=0.008)
    assert np.cov(drawn.T) == pytest.approx(prior_covariance(PARTS), abs=0.002)


def test_the_same_seed_gives_the_same_draws_and_another_one_others() -> None:
    first, same, another = (factors(belief_of(SEEN), 8, 3, seed) for seed in (1, 1, 2))
    assert (first == same).all()
    assert not np.isclose(first, another).any()


def test_a_repeated_measurement_counts_as_one_of_less_error() -> None:
    # The mean of four is known twice as well as each; what the plan itself is off by is the same in all of them.
    once = TimeObservation(MIXED, REFERENCE, 0.9, LOG_ERROR)
    repeated, as_one = belief_of([once] * 4), belief_of([TimeObservation(MIXED, REFERENCE, 0.9, LOG_ERROR / 2)])
    believed = repeated.posterior().mean().correction(0)
    assert believed == pytest.approx(as_one.posterior().mean().correction(0), abs=1e-9)

    def spread(belief: StepTimeBelief) -> float:
        draws = belief.posterior().draws(20_000, 5)
        return float((draws.of_plan_s(MIXED) / draws.of_plan_s(REFERENCE)).std())

    assert spread(repeated) == pytest.approx(spread(as_one), rel=0.05)
    assert spread(repeated) < 0.7 * spread(belief_of([once]))


def test_the_unit_of_time_makes_no_difference() -> None:
    def in_milliseconds(plan: KnownPlan) -> KnownPlan:
        return KnownPlan(plan.name, {part: 1000 * time_s for part, time_s in plan.parts.items()})

    scaled = [
        TimeObservation(in_milliseconds(seen.plan), in_milliseconds(seen.reference), seen.relative_step_time, LOG_ERROR)
        for seen in SEEN
    ]
    assert factors(belief_of(scaled), 16, 3) == pytest.approx(factors(belief_of(SEEN), 16, 3))


def test_the_reference_beside_itself_teaches_nothing() -> None:
    beside_itself = belief_of([*SEEN, observed(REFERENCE, 1.0)])
    expected = belief_of(SEEN).posterior().mean().correction(0)
    assert beside_itself.posterior().mean().correction(0) == pytest.approx(expected)


def test_what_is_learned_of_a_policy_moves_it_elsewhere_too_but_less() -> None:
    here = of_layers(FULL)
    elsewhere = [of_layers(FULL, "Other"), of_layers(FULL, compile="layer"), of_layers(FULL, "Other", "layer")]
    reference = KnownPlan("reference", {OUTSIDE: 1.0, of_layers(NO_AC): 4.0})
    fast = KnownPlan("fast", {OUTSIDE: 1.0, here: 6.0})
    parts = [OUTSIDE, of_layers(NO_AC), here, *elsewhere, of_layers(SAC)]
    belief = belief_of([TimeObservation(fast, reference, 1.3, LOG_ERROR)], parts)
    moved = {part: 1.0 - factor for part, factor in belief.posterior().mean().correction(0).items()}
    at_other_class, in_other_mode, at_both = (moved[part] for part in elsewhere)
    assert moved[here] > in_other_mode > at_other_class > abs(moved[of_layers(SAC)])
    assert at_both == pytest.approx(at_other_class)
    assert at_both > moved[here] / 3


def test_a_fast_compiler_is_believed_to_be_fast_with_what_was_not_measured_too() -> None:
    compiled = TimePart("layer", "", None)
    full, sac = of_layers(FULL, compile="layer"), of_layers(SAC, "Other", "layer")
    reference = KnownPlan("reference", {OUTSIDE: 1.0, of_layers(FULL): 4.0})
    fast = KnownPlan("fast", {compiled: 1.0, full: 4.0})
    belief = belief_of([TimeObservation(fast, reference, 0.7, LOG_ERROR)], [*PARTS, compiled, full, sac])
    believed = belief.posterior().mean().correction(0)
    assert believed[full] < 0.9
    assert believed[sac] < 0.9
    assert believed[of_layers(SAC)] == pytest.approx(1.0, abs=0.01)


def test_learning_replaces_what_was_learned_before() -> None:
    belief = belief_of([observed(MIXED, 0.5)])
    belief.learn(SEEN)
    assert belief.posterior().mean().correction(0) == belief_of(SEEN).posterior().mean().correction(0)
    belief.learn(())
    assert set(belief.posterior().mean().correction(0).values()) == {1.0}


def test_parts_of_measured_plans_are_known_without_being_told() -> None:
    belief = StepTimeBelief()
    belief.learn(SEEN)
    assert set(belief.posterior().mean().correction(0)) == {*MIXED.parts, *OTHER.parts, *REFERENCE.parts}


def test_a_measured_plan_s_own_error_goes_with_it_and_with_no_other_plan() -> None:
    # What two plans of the same parts differ by is their own.
    same_parts = KnownPlan("twin", MIXED.parts)
    draws = belief_of([observed(MIXED, 0.8)]).posterior().draws(200, 0)
    measured_s, twin_s = draws.step_times_s([MIXED, same_parts])
    ratios = measured_s / twin_s
    assert 0.0 < ratios.std() < 2 * PLAN_ERRORS[1]
    correction = draws.correction(7)
    assert twin_s[7] == pytest.approx(sum(time_s * correction[part] for part, time_s in MIXED.parts.items()))


def test_no_factor_is_below_the_smallest() -> None:
    drawn = factors(belief_of([observed(MIXED, 0.15)]), 500, 0)
    assert drawn.min() == SMALLEST_FACTOR


def test_relative_times_are_over_the_reference_draw_by_draw() -> None:
    draws = belief_of(SEEN).posterior().draws(16, 0)
    relative = draws.relative([NEVER_MEASURED, MIXED], REFERENCE, draws.of_plan_s(OTHER))
    assert relative.shape == (3, 16)
    times_s = draws.step_times_s([NEVER_MEASURED, MIXED, OTHER, REFERENCE])
    assert relative == pytest.approx(times_s[:3] / times_s[3])
    # What was measured is known far better than what was not.
    assert relative[1].mean() == pytest.approx(0.9, rel=0.01)
    assert relative[1].std() < relative[0].std() / 3


def test_the_truth_lies_in_the_interval_as_often_as_the_interval_says() -> None:
    worlds, inside = 200, 0

    def true_s(plan: KnownPlan) -> float:
        return sum(s * float(factor[part]) for part, s in plan.parts.items()) * of_plan.get(plan.name, 1.0)

    rng = np.random.default_rng(11)
    theta = rng.multivariate_normal(np.zeros(len(PARTS)), prior_covariance(PARTS), size=worlds)
    for number in range(worlds):
        factor = dict(zip(PARTS, np.maximum(SMALLEST_FACTOR, 1.0 + theta[number]), strict=True))
        plan_error = PLAN_ERRORS[number % len(PLAN_ERRORS)]
        of_plan = {plan.name: 1.0 + plan_error * float(rng.standard_normal()) for plan in (REFERENCE, MIXED, OTHER)}

        belief = belief_of(
            [
                observed(plan, true_s(plan) / true_s(REFERENCE) * math.exp(LOG_ERROR * rng.standard_normal()))
                for plan in (MIXED, OTHER)
            ]
        )
        draws = belief.posterior().draws(400, 1, number)
        believed = draws.of_plan_s(NEVER_MEASURED) / draws.of_plan_s(REFERENCE)
        low, high = np.quantile(believed, [0.05, 0.95])
        inside += low <= true_s(NEVER_MEASURED) / true_s(REFERENCE) <= high
    assert 0.84 <= inside / worlds <= 0.96


def test_worth_is_the_expected_improvement_and_what_a_measurement_lowers_the_least_mean_by() -> None:
    rng = np.random.default_rng(2)
    mean = np.array([0.80, 0.82, 0.79, 0.81])
    root = np.array([[0.03, 0.0, 0.0], [0.02, 0.02, 0.0], [0.0, 0.0, 0.04], [0.0, 0.004, 0.0]])
    relative = mean[:, None] + root @ rng.standard_normal((3, 4000))
    log_error, best, candidates = 0.01, 3, [0, 1, 2]
    worth = worth_of(relative, candidates, best, log_error)

    # By definition: a measurement is simulated, all means are conditioned on it, and the least one is taken.
    centre, covariance = relative.mean(axis=1), np.cov(relative, bias=True)
    for candidate, found in zip(candidates, worth, strict=True):
        noise = log_error * centre[candidate]
        truth = centre[candidate] + np.sqrt(covariance[candidate, candidate]) * rng.standard_normal(100_000)
        measured = truth + noise * rng.standard_normal(100_000)
        gain = covariance[:, candidate] / (covariance[candidate, candidate] + noise**2)
        least = (centre[:, None] + gain[:, None] * (measured - centre[candidate])).min(axis=0).mean()
        improvement = np.maximum(0.0, relative[best] - relative[candidate]).mean()
        assert found == pytest.approx(improvement + centre.min() - least, abs=5e-4)


def test_a_plan_that_is_known_to_be_slower_is_worth_nothing() -> None:
    relative = np.vstack([np.full(64, 0.9), np.linspace(0.7, 0.9, 64), np.full(64, 0.8)])
    slower, unknown = worth_of(relative, [0, 1], 2, 0.01)
    assert slower == pytest.approx(0.0)
    assert unknown > 0.02


def test_the_gain_is_a_quantile_over_draws_of_what_the_fastest_plan_saves() -> None:
    best_s = np.full(10, 10.0)
    step_times_s = np.array([[11.0] * 10, [*([12.0] * 5), *np.linspace(9.0, 8.0, 5)]])
    assert gain_at(step_times_s, best_s, 0.0) == 0.0
    assert gain_at(step_times_s, best_s, 1.0) == pytest.approx(0.2)
    gains = [0.0] * 5 + [0.1, 0.125, 0.15, 0.175, 0.2]
    assert gain_at(step_times_s, best_s, 0.9) == pytest.approx(np.quantile(gains, 0.9))
