"""Records with something in every field, for tests of the store."""

from __future__ import annotations

import random

from actune.predictions import PredictionRecord
from actune.records import (
    Environment,
    GradientReport,
    LayerClass,
    Measurement,
    ModelStructure,
    Outcome,
    SamplePair,
    StepSample,
    TargetInfo,
)
from actune.study_records import StudySettings, TrialRecord, Verdict, VerdictEntry

SETTINGS = StudySettings(
    target="dense-tiny",
    budget="60%",
    device="cpu",
    space="default",
    space_yaml="schema: 1\nname: 'größer'\n",
    trials=30,
    sampler="tpe",
    seed=7,
    workers=1,
    timeout_s=None,
    trial_timeout_s=123.4,
    timed_pairs=8,
    verdict_rounds=12,
)

TARGET = TargetInfo(
    spec="dense-tiny",
    fingerprint="0123456789abcdef",
    structure=ModelStructure(
        layer_fqns=("layers.0", "layers.1"),
        classes=(
            LayerClass(
                name="TransformerBlock",
                layer_fqns=("layers.0", "layers.1"),
                parts=("attention", "feed_forward"),
                module_fqns=("attention", "attention.wq", "feed_forward"),
                linear_fqns=("attention.wq",),
            ),
        ),
    ),
    parameter_bytes=1_000_000,
    static_bytes=2**40,
)

ENVIRONMENT = Environment(
    device="cpu",
    device_name="A processor",
    device_total_bytes=None,
    threads=4,
    torch_version="2.11.0",
    python_version="3.11.7",
    platform="Linux",
)

REFERENCE_HASH = "aaaaaaaaaaaaaaaa"


def pairs(count: int, seed: int = 0) -> tuple[SamplePair, ...]:
    """Timings with as many digits as a float has."""
    draw = random.Random(seed).random
    return tuple(SamplePair(StepSample(draw(), draw()), StepSample(draw(), draw())) for _ in range(count))


def measurement(seed: int = 0, *, outcome: Outcome = Outcome.OK, peak_bytes: int | None = 2**36 + 1) -> Measurement:
    return Measurement(
        outcome=outcome,
        peak_bytes=peak_bytes,
        allocated_bytes=2**35,
        reserved_bytes=2**35 + 2**21,
        pairs=pairs(5, seed),
        compile_s=0.1 + 0.2,
    )


def trial(
    number: int, *, plan: str | None = None, reused: bool = False, measured: Measurement | None = None
) -> TrialRecord:
    plan_hash = f"{number:016x}" if plan is None else plan
    return TrialRecord(
        number=number,
        plan_hash=plan_hash,
        plan_toml=f"# plan {plan_hash}\nschema = 1\n",
        preset="sac" if number % 2 else None,
        attempt=1 + number % 2,
        reused=reused,
        measurement=measurement(number) if measured is None else measured,
        started_at="2025-01-02T03:04:05.678+00:00",
        finished_at="2025-01-02T03:05:05.678+00:00",
    )


def prediction(
    number: int,
    *,
    preset: str | None = None,
    peak_bytes: int | None = 2**36 + 3,
    step_time_s: float | None = 0.1 + 0.2,
    on_frontier: bool = False,
) -> PredictionRecord:
    """Of the plan that the trial of that number runs."""
    plan = trial(number)
    return PredictionRecord(plan.plan_hash, plan.plan_toml, preset, peak_bytes, step_time_s, on_frontier)


FAILED = Measurement(outcome=Outcome.CRASHED, message="killed by signal 9", detail="Traceback …\n  'é' \x1b[0m\n")

VERDICT = Verdict(
    reference_hash=REFERENCE_HASH,
    entries=(
        VerdictEntry(f"{3:016x}", 3, "sac", tuple(pair.plan for pair in pairs(4)), 1.1 * 1.1, 1.2, 1.22),
        VerdictEntry(f"{2:016x}", 2, None, (), 1.3, 1.2, 1.4),
    ),
    best_hash=f"{3:016x}",
    best_toml="schema = 1\n[provenance]\nstudy = 'a'\n",
    gradients=((f"{3:016x}", GradientReport(True, False, 1e-5, 3.3e-7, "layers.0.attention.wq.weight")),),
    smallest_peak_bytes=2**33,
    smallest_peak_hash=f"{2:016x}",
    trials=4,
)
NO_VERDICT = Verdict(None, (), None, None, (), None, None, 0)
