"""A finished study with something in every table, made without running anything."""

from dataclasses import replace

from actune.plan import Plan, Rule, Treatment, dump_plan, plan_hash
from actune.predictions import PredictionRecord
from actune.records import (
    CompiledCode,
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
from actune.store import Store
from actune.study_records import (
    BudgetVerdict,
    Certificate,
    StopReason,
    StudySettings,
    TrialRecord,
    Verdict,
    VerdictEntry,
)

NAME = "sound"
LAYERS = tuple(f"layers.{number}" for number in range(4))
PLANS = {
    "full": Plan((Rule(("layers.0-3",), Treatment("full")),)),
    "none": Plan(),
    None: Plan((Rule(("layers.0-1",), Treatment("selective", save=("attention.wo::mm",))),), compile="layer"),
}
BUDGETS_BYTES = (3 * 2**20, 2 * 2**20)
TARGET = TargetInfo(
    spec="no_such_module:Net",
    fingerprint="0123456789abcdef",
    structure=ModelStructure(LAYERS, (LayerClass("Block", LAYERS, ("attention",), ("attention", "attention.wo"), ()),)),
    parameter_bytes=1_000_000,
    static_bytes=2**20,
)
ENVIRONMENT = Environment("cpu", "A processor", None, 1, "2.11.0", "3.11.7", "Linux")
SETTINGS = StudySettings(
    target=TARGET.spec,
    budget="3MiB,60%",
    device="cpu",
    space="auto",
    space_yaml="",
    trials=30,
    sampler="thompson",
    seed=0,
    workers=1,
    timeout_s=None,
    trial_timeout_s=900.0,
    timed_pairs=5,
    verdict_rounds=9,
)


def make_study(path):
    """A SQLite database with the study. Its target does not exist, so `resume` ends before a worker starts."""
    with Store.open(f"sqlite:///{path}", create=True) as store:
        store.create_study(NAME, SETTINGS, TARGET, ENVIRONMENT)
        store.set_budgets(NAME, BUDGETS_BYTES)
        trials = [_trial(number, preset, plan) for number, (preset, plan) in enumerate(PLANS.items())]
        store.set_reference(NAME, trials[0].plan_hash)
        for trial in trials:
            store.record_trial(NAME, trial, reference_hash=trials[0].plan_hash, budget_bytes=BUDGETS_BYTES[0])
        store.save_predictions(
            NAME,
            [PredictionRecord(trial.plan_hash, trial.plan_toml, trial.preset, 2**20, 0.5, True) for trial in trials],
        )
        store.save_verdict(NAME, _verdict(trials))


def _trial(number, preset, plan):
    step = StepSample(1.0 - number / 10, 0.9 - number / 10)
    measured = Measurement(
        Outcome.OK,
        peak_bytes=(1 + number) * 2**20,
        pairs=(SamplePair(step, StepSample(1.0, 0.9)),) * 3,
        compile_s=1.5,
        message="a message",
        compiled_code=CompiledCode(("model.py:3: a break",), ("layers.1.attention",), "eager"),
    )
    return TrialRecord(
        number=number,
        plan_hash=plan_hash(plan),
        plan_toml=dump_plan(plan),
        preset=preset,
        attempt=1,
        reused=False,
        measurement=measured,
        started_at="2025-01-02T03:04:05.678+00:00",
        finished_at="2025-01-02T03:05:05.678+00:00",
    )


def _verdict(trials):
    best = trials[-1]
    best_toml = dump_plan(replace(PLANS[None], provenance={"study": NAME, "target": TARGET.spec, "trial": 2}))
    samples = (StepSample(0.8, 0.7), StepSample(0.81, 0.7))
    return Verdict(
        reference_hash=trials[0].plan_hash,
        entries=tuple(VerdictEntry(t.plan_hash, t.number, t.preset, samples, 0.8, 0.7, 0.9) for t in trials),
        best_hash=best.plan_hash,
        best_toml=best_toml,
        gradients=((best.plan_hash, GradientReport(True, True, 0.0, 0.0, "loss", explanation="none")),),
        smallest_peak_bytes=2**20,
        smallest_peak_hash=trials[0].plan_hash,
        trials=len(trials),
        budgets=tuple(
            BudgetVerdict(size, best.plan_hash, best_toml, 3 * 2**20, 8, Certificate(0.75, 0.01))
            for size in BUDGETS_BYTES
        ),
        stopped=StopReason.TOLERANCE,
    )
