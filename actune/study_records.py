"""What a study remembers: its settings, its trials, and how it ended. Plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from actune.records import Environment, GradientReport, Measurement, Outcome, StepSample, TargetInfo
from actune.units import MAX_DURATION_S

_MOST = {
    "trials": 100_000,
    "workers": 64,
    "world_size": 2**20,
    "nproc_per_node": 64,
    "timed_pairs": 1000,
    "verdict_rounds": 1000,
}


class StopReason(StrEnum):
    """Why a study has no more trials."""

    TOLERANCE = "tolerance"
    """No plan is believed to beat the best by more than the tolerance."""
    EXHAUSTED = "exhausted"
    """Every plan that may be the best has been measured, or is predicted to be over the budget."""
    TRIALS = "trials"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What a study was started with; `resume` needs nothing else.

    Attributes:
        budget: as the user wrote it: one, or several with commas between them.
        space: the search space's name or path, for people.
        space_yaml: its text, so that a study goes on with what it was started with.
        trials: how many plans are measured in all, at most.
        timeout_s: cap on the whole search, None for none.
        trial_timeout_s: cap on one request to a worker.
        world_size: as in LoadTarget; studies from before it have one device.
        nproc_per_node: as in LoadTarget; studies from before it have one process.
        tolerance: the search ends when no plan is believed to be faster than the best by more than this share.
        frontier: budgets between the smallest predicted peak and the largest budget are searched too.
        devices: the cards that workers get, such as `cuda:0`; all visible ones if none is named.
        engine: where workers run, `local` or `ray`; studies from before it ran on one machine.
        address: of a Ray cluster, None for the one that Ray finds.

    Raises:
        ValueError: a number is out of the range that the command line has for it. Settings may come from a stranger's
            database, which is not to start a thousand processes.
    """

    target: str
    budget: str
    device: str
    space: str
    space_yaml: str
    trials: int
    sampler: str
    seed: int
    workers: int
    timeout_s: float | None
    trial_timeout_s: float
    timed_pairs: int
    verdict_rounds: int
    world_size: int = 1
    nproc_per_node: int = 1
    tolerance: float = 0.01
    frontier: bool = False
    devices: tuple[str, ...] = ()
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range. Expected 1 to {most}.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance: {self.tolerance} is no share below 1.")
        if not 0 < self.trial_timeout_s <= MAX_DURATION_S:
            raise ValueError(f"trial_timeout_s: {self.trial_timeout_s} is out of range.")


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as the store has it.

    Attributes:
        budget_bytes: the cap, the largest of the budgets; None until the peak without AC is known where the budget is
            a share of it.
        reference_hash: the plan that trials are timed against; None until the first trials have run.
        created_at: ISO 8601, UTC.
        budgets_bytes: all budgets, the largest first; None until they are known, or of a study from before them.
    """

    name: str
    settings: StudySettings
    target: TargetInfo
    environment: Environment
    budget_bytes: int | None
    reference_hash: str | None
    created_at: str
    budgets_bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        number: Optuna's number of the trial in its study.
        preset: the preset's name if the plan came from one.
        attempt: 1, or more if the coordinator died while earlier attempts ran.
        reused: measured before on the same target and environment, so not run again.
        started_at: ISO 8601, UTC.
        finished_at: ISO 8601, UTC.
    """

    number: int
    plan_hash: str
    plan_toml: str
    preset: str | None
    attempt: int
    reused: bool
    measurement: Measurement
    started_at: str
    finished_at: str

    def fits(self, budget_bytes: int) -> bool:
        """Whether the plan ran well within the budget."""
        peak_bytes = self.measurement.peak_bytes
        return self.measurement.outcome is Outcome.OK and peak_bytes is not None and peak_bytes <= budget_bytes


@dataclass(frozen=True, slots=True)
class VerdictEntry:
    """A plan in the final comparison.

    Attributes:
        number: the trial it came from.
        samples: its timed step of each round.
        relative_step_time: median over the rounds of its step time over the reference's in the same round.
        relative_low: lower end of the median's 95% confidence interval.
        relative_high: upper end.

    Raises:
        ValueError: the ratio is not more than zero.
    """

    plan_hash: str
    number: int
    preset: str | None
    samples: tuple[StepSample, ...]
    relative_step_time: float
    relative_low: float
    relative_high: float

    def __post_init__(self) -> None:
        if not self.relative_step_time > 0:
            raise ValueError(f"relative_step_time: {self.relative_step_time} is no ratio of times")


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far from the optimum the best plan may be, by the model as all trials corrected it.

    Attributes:
        bound_relative_step_time: no plan that fits is believed to be faster than this, relative to the reference.
        possible_gain: by what share of the best plan's step time the fastest plan is faster at most, with 90%
            confidence.
    """

    bound_relative_step_time: float
    possible_gain: float


@dataclass(frozen=True, slots=True)
class BudgetVerdict:
    """The best plan within one budget.

    Attributes:
        best_hash: None if no plan fits or none passed the comparison of gradients.
        best_toml: it, with provenance.
        peak_bytes: the highest peak of the trial and of the longer run on other batches.
        peak_steps: over how many steps that was.
        certificate: None of a target that can't be profiled.
    """

    budget_bytes: int
    best_hash: str | None
    best_toml: str | None
    peak_bytes: int | None
    peak_steps: int
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a study ended.

    Attributes:
        reference_hash: the plan whose step time is 1.
        entries: what was compared, in interleaved rounds.
        best_hash: the plan found best; None if no plan fits or none passed the gradient comparison.
        best_toml: it, with provenance.
        gradients: of each plan that was checked, the best one last, by plan hash.
        smallest_peak_bytes: the smallest peak measured, of any plan.
        smallest_peak_hash: the plan that reached it.
        trials: how many finished trials it was taken over.
        budgets: of each budget, the largest first; its best plan is the one above. Verdicts from before it have none.
        stopped: why there are no more trials.
    """

    reference_hash: str | None
    entries: tuple[VerdictEntry, ...]
    best_hash: str | None
    best_toml: str | None
    gradients: tuple[tuple[str, GradientReport], ...]
    smallest_peak_bytes: int | None
    smallest_peak_hash: str | None
    trials: int
    budgets: tuple[BudgetVerdict, ...] = ()
    stopped: StopReason | None = None
