"""The gradient comparison: what must be found unequal, and what must not."""

import pytest

from actune.boundary import from_json, to_json
from actune.errors import TargetError
from actune.measure import Workload, compare_gradients, open_device
from actune.plan import Plan, Treatment, dump_plan
from actune.records import CompareGradients, GradientReport
from tests.ac.models import IGNORE_TORCHS_OWN, uniform

NONE, FULL = Plan(), uniform(Treatment("full"))


def compare(name, plan=FULL, reference=NONE):
    workload = Workload(name if "-" in name else f"tests.measure.targets:{name}", open_device("cpu"), seed=0)
    report = compare_gradients(workload, CompareGradients(dump_plan(plan), dump_plan(reference)))
    assert from_json(GradientReport, to_json(report)) == report
    return report


@pytest.mark.parametrize("treatment", [Treatment("full"), Treatment("selective"), Treatment("full", wrap=("w1",))])
def test_equal_bitwise(treatment):
    assert compare("Plain", uniform(treatment)) == GradientReport(True, True, 0.0, 0.0, "loss")


def test_the_built_in_mixture_is_equal_bitwise():
    assert compare("moe-tiny?batch=1&seq=16").equal


def test_a_recomputation_that_differs_is_reported():
    report = compare("DiffersWhenRecomputed")
    assert not report.equal
    assert report.bitwise
    assert 0 < report.largest_error <= 2
    assert report.worst.startswith("layers.")


def test_a_gradient_that_is_lost_counts_as_zero():
    report = compare("LosesAGradient")
    assert (report.equal, report.largest_error, report.worst) == (False, 1.0, "extra")
    report = compare("LosesAGradient", plan=NONE, reference=FULL)
    assert (report.equal, report.largest_error, report.worst) == (False, 1.0, "extra")


def test_infinite_gradients_under_a_plan_are_unequal():
    report = compare("OverflowsWhenRecomputed")
    assert (report.equal, report.largest_error) == (False, 2.0)


def test_a_reference_that_is_not_finite_is_the_targets_fault():
    with pytest.raises(TargetError, match=r"target 'tests\.measure\.targets:NotANumber': the loss is not finite"):
        compare("NotANumber")


def test_a_target_that_does_not_repeat_gets_a_tolerance():
    report = compare("Noisy")
    assert report.equal
    assert not report.bitwise
    assert 0 < report.tolerance < 0.01


def test_a_target_that_repeats_at_first_gets_a_tolerance_too():
    report = compare("NoisyLater")
    assert (report.equal, report.bitwise) == (True, False)
    assert report.tolerance > 0


def test_other_experts_in_the_recomputation_are_named():
    """Scores of the other sign: the two experts chosen by the recomputation are never those of the forward."""
    report = compare("Reroutes", uniform(Treatment("full", save_routing=False)))
    assert not report.equal
    assert report.explanation is not None
    assert "layers.0.moe (4 of 4 choices), layers.1.moe (4 of 4 choices)" in report.explanation


@pytest.mark.parametrize("treatment", [Treatment("full"), Treatment("selective")])
def test_experts_that_are_kept_are_chosen_once(treatment):
    """The gate's product is recomputed otherwise, so its own gradient is off; the experts are those of the forward."""
    assert compare("Reroutes", uniform(treatment)).explanation is None


@IGNORE_TORCHS_OWN
def test_a_compiled_plan_gets_half_of_the_digits():
    report = compare("Plain", uniform(Treatment("full"), compile="layer"))
    assert report.equal
    assert not report.bitwise
    assert report.tolerance == pytest.approx(2**-11.5)  # √2⁻²³, float32
