"""Whether a plan computes what the reference computes: loss and every gradient."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from actune.errors import TargetError
from actune.measure.ranks import local_of
from actune.measure.rerouting import describe_rerouting
from actune.measure.workload import Workload
from actune.plan import Plan, parse_plan
from actune.records import CompareGradients, GradientReport

SPREAD_FACTOR = 10.0
"""Where the reference does not repeat bitwise, a plan may differ by so many times what the reference differs itself."""
MORE_REPEATS = 2
"""Of the reference, where a plan differs from it although it has repeated bitwise so far."""
PIECE = 2**26
"""So many elements are compared at once: half a gigabyte of doubles."""


def compare_gradients(workload: Workload, request: CompareGradients) -> GradientReport:
    """One step from the same start under the reference, under it again, and under the plan.

    The second run of the reference tells whether the target's ops are deterministic. If they are, and neither plan
    compiles, the plan must agree bitwise: recomputation runs the same kernels on the same numbers. A compiled plan runs
    other kernels, which may round differently: there half of the digits must agree (√ε of the coarsest dtype that the
    reference computes in).

    A device that does not compute has nothing to compare, and neither has a rank whose others are faked, since what it
    gathers is garbage: the report says so. Several ranks each compare what they hold of the gradients; the largest
    error of all decides.

    Raises:
        PlanError: a plan does not fit the model.
        TargetError: the reference's loss or a gradient is not finite, so that nothing can be told from it.
        Exception: whatever the target raises under a plan.
    """
    plan, reference = parse_plan(request.plan_toml), parse_plan(request.reference_toml)
    if not workload.has_true_values:
        return GradientReport(
            equal=False, bitwise=False, tolerance=0.0, largest_error=0.0, worst="loss", compared=False
        )
    compiled = plan.compile != "off" or reference.compile != "off"
    # Inductor draws its own random numbers; with this it draws eager's, so that dropout masks are comparable.
    with torch._inductor.config.patch(fallback_random=True):
        expected = _loss_and_gradients(workload, reference)
        _check_finite(expected, workload)
        with CoarsestDtype() if compiled else nullcontext() as dtypes:
            spread, _ = _largest_error(_loss_and_gradients(workload, reference), expected, workload)
        error, worst = _largest_error(_loss_and_gradients(workload, plan), expected, workload)
        repeats = 0
        while not compiled and error > spread == 0.0 and repeats < MORE_REPEATS:
            # One repeat may by luck have been the same to the last bit.
            spread, _ = _largest_error(_loss_and_gradients(workload, reference), expected, workload)
            repeats += 1
    bitwise = spread == 0.0 and not compiled
    tolerance = 0.0 if bitwise else SPREAD_FACTOR * spread
    if dtypes is not None:
        tolerance = max(tolerance, math.sqrt(workload.ranks.agree_max(dtypes.epsilon)))
    equal = error <= tolerance
    return GradientReport(
        equal=equal,
        bitwise=bitwise,
        tolerance=tolerance,
        largest_error=error,
        worst=worst,
        explanation=None if equal or plan.compile != "off" else _explanation(workload, plan),
    )


def _explanation(workload: Workload, plan: Plan) -> str | None:
    found = workload.ranks.gather(describe_rerouting(workload, plan))
    return next((of_rank for of_rank in found if of_rank is not None), None)


def _loss_and_gradients(workload: Workload, plan: Plan) -> dict[str, Tensor]:
    """Copies on the CPU, by parameter FQN, with the loss as `loss`; of what is distributed, this rank's part."""
    workload.restart()
    try:
        with workload.under(plan):
            found = {"loss": workload.forward_backward(0).to("cpu", copy=True)}
        for name, parameter in workload.model.named_parameters():
            if parameter.grad is not None:
                found[name] = local_of(parameter.grad).to("cpu", copy=True)
    finally:
        workload.forget_plans()
        workload.restart()
    return found


def _check_finite(expected: dict[str, Tensor], workload: Workload) -> None:
    here = next((name for name, tensor in expected.items() if not tensor.isfinite().all()), None)
    name = next((found for found in workload.ranks.gather(here) if found is not None), None)
    if name is not None:
        what = "the loss" if name == "loss" else f"the gradient of {name}"
        raise TargetError(
            f"target '{workload.target.name}': {what} is not finite in the first step, whatever the plan, so it can't "
            "be told whether a plan computes the same. Correct the model's initialisation, its dtype or the loss."
        )


def _largest_error(found: dict[str, Tensor], expected: dict[str, Tensor], workload: Workload) -> tuple[float, str]:
    """The largest relative error of a tensor on any rank, and its name."""
    largest, worst = 0.0, "loss"
    for name in dict.fromkeys([*expected, *found]):
        error = _relative_error(found.get(name), expected.get(name), workload.device.torch_device)
        if error > largest:
            largest, worst = error, name
    return workload.ranks.worst((largest, worst), lambda of_rank: of_rank[0])


def _relative_error(found: Tensor | None, expected: Tensor | None, device: torch.device) -> float:
    """L2 norm of the difference over the larger of both norms: 0 to 2.

    A gradient that one side lacks counts as zero, which makes 1; one that is not finite makes 2.

    Args:
        found: on the CPU.
        expected: on the CPU.
        device: computes the norms, piece by piece, since a card does in milliseconds what takes a processor seconds.
    """
    if found is None or expected is None:
        return 1.0
    if torch.equal(found, expected):
        return 0.0
    if not found.isfinite().all():
        return 2.0
    squares = torch.zeros(3, dtype=torch.double, device=device)
    for pieces in zip(found.flatten().split(PIECE), expected.flatten().split(PIECE), strict=True):
        one, other = (piece.to(device).double() for piece in pieces)
        squares += torch.stack([x.square().sum() for x in (one - other, one, other)])
    difference, *norms = squares.sqrt().tolist()
    return float(difference / max(norms))


class CoarsestDtype(TorchDispatchMode):
    """Watches the dtypes of what ops return. `epsilon` is that of the coarsest floating one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.epsilon = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op as it is."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.epsilon = max(self.epsilon, torch.finfo(tensor.dtype).eps)
        return out
