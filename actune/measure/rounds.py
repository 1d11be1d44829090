"""Several plans side by side: each round runs one step of every plan."""

from __future__ import annotations

from functools import partial

from actune.measure.workload import Workload
from actune.plan import parse_plan
from actune.records import MeasureRounds, RoundsMeasured, StepSample

WARM_UP_STEPS = 1


def measure_rounds(workload: Workload, request: MeasureRounds) -> RoundsMeasured:
    """Times the plans in rounds whose order rotates, so that neither drift nor place favours one.

    Raises:
        PlanError: a plan does not fit the model.
        Exception: whatever the target raises under a plan.
    """
    plans = [parse_plan(text) for text in request.plan_tomls]
    samples: list[list[StepSample]] = [[] for _ in plans]
    workload.restart()
    workload.start_optimizer()
    try:
        # Where ops compute nothing, nothing but the optimizer's state has to be there, and one round stands for all.
        computes = workload.device.computes
        for plan in plans if computes else plans[:1]:
            with workload.under(plan):
                for step in range(WARM_UP_STEPS):
                    workload.train_step(step)
        for number in range(request.rounds if computes else 1):
            step = WARM_UP_STEPS + number
            workload.fetch_batch(step)
            for offset in range(len(plans)):
                index = (number + offset) % len(plans)
                with workload.under(plans[index]):
                    samples[index].append(workload.timed(partial(workload.train_step, step)))
        if not computes:
            samples = [of_plan * request.rounds for of_plan in samples]
    finally:
        workload.forget_plans()
        workload.restart()
    return RoundsMeasured(tuple(tuple(of_plan) for of_plan in samples))
