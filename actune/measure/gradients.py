"""Whether a plan computes what the reference computes: loss and every gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actune.measure.workload import Workload
from actune.plan import Plan, parse_plan
from actune.records import CompareGradients, GradientReport

SPREAD_FACTOR = 10.0
"""Where the reference does not repeat bitwise, a plan may differ by so many times what the reference differs itself."""


def compare_gradients(workload: Workload, request: CompareGradients) -> GradientReport:
    """One step from the same start under the reference, under it again, and under the plan.

    The second run of the reference tells whether the target's ops are deterministic. If they are, and neither plan
    compiles, the plan must agree bitwise: recomputation runs the same kernels on the same numbers. A compiled plan runs
    other kernels, which may round differently: there half of the digits must agree (√ε of the gradient's dtype).

    Raises:
        PlanError: a plan does not fit the model.
        Exception: whatever the target raises under a plan.
    """
    plan, reference = parse_plan(request.plan_toml), parse_plan(request.reference_toml)
    compiled = plan.compile != "off" or reference.compile != "off"
    # Inductor draws its own random numbers; with this it draws eager's, so that dropout masks are comparable.
    with torch._inductor.config.patch(fallback_random=True):
        expected = _loss_and_gradients(workload, reference)
        spread, _ = _largest_error(_loss_and_gradients(workload, reference), expected)
        error, worst = _largest_error(_loss_and_gradients(workload, plan), expected)
    bitwise = spread == 0.0 and not compiled
    tolerance = 0.0 if bitwise else SPREAD_FACTOR * spread
    if compiled:
        tolerance = max(tolerance, *(math.sqrt(torch.finfo(tensor.dtype).eps) for tensor in expected.values()))
    return GradientReport(
        equal=error <= tolerance, bitwise=bitwise, tolerance=tolerance, largest_error=error, worst=worst
    )


def _loss_and_gradients(workload: Workload, plan: Plan) -> dict[str, Tensor]:
    """Copies on the CPU, by parameter FQN, with the loss as `loss`."""
    workload.restart()
    try:
        with workload.under(plan):
            found = {"loss": workload.forward_backward(0).to("cpu", copy=True)}
        for name, parameter in workload.model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.to("cpu", copy=True)
    finally:
        workload.forget_plans()
        workload.restart()
    return found


def _largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative L2 error of a tensor, and its name. A gradient that one side lacks, or NaN, is infinite."""
    largest, worst = 0.0, "loss"
    for name in found.keys() | expected.keys():
        error = _relative_error(found.get(name), expected.get(name))
        if error > largest:
            largest, worst = error, name
    return largest, worst


def _relative_error(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None:
        return math.inf
    if torch.equal(found, expected):
        return 0.0
    difference = torch.linalg.vector_norm((found - expected).double()).item()
    error = difference / max(torch.linalg.vector_norm(expected.double()).item(), torch.finfo(torch.double).tiny)
    return math.inf if math.isnan(error) else error
