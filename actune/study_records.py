"""What a study remembers: its settings, its trials, and how it ended. Plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from actune.records import Environment, GradientReport, Measurement, StepSample, TargetInfo


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What a study was started with; `resume` needs nothing else.

    Attributes:
        budget: as the user wrote it.
        space: the search space's name or path, for people.
        space_yaml: its text, so that a study goes on with what it was started with.
        trials: how many plans are measured in all.
        timeout_s: cap on the whole search, None for none.
        trial_timeout_s: cap on one request to a worker.
        world_size: as in LoadTarget; studies from before it have one device.
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


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A study as the store has it.

    Attributes:
        budget_bytes: the cap; None until the peak without AC is known where the budget is a share of it.
        reference_hash: the plan that trials are timed against; None until the first trials have run.
        created_at: ISO 8601, UTC.
    """

    name: str
    settings: StudySettings
    target: TargetInfo
    environment: Environment
    budget_bytes: int | None
    reference_hash: str | None
    created_at: str


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


@dataclass(frozen=True, slots=True)
class VerdictEntry:
    """A plan in the final comparison.

    Attributes:
        number: the trial it came from.
        samples: its timed step of each round.
        relative_step_time: median over the rounds of its step time over the reference's in the same round.
        relative_low: lower end of the median's 95% confidence interval.
        relative_high: upper end.
    """

    plan_hash: str
    number: int
    preset: str | None
    samples: tuple[StepSample, ...]
    relative_step_time: float
    relative_low: float
    relative_high: float


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
    """

    reference_hash: str | None
    entries: tuple[VerdictEntry, ...]
    best_hash: str | None
    best_toml: str | None
    gradients: tuple[tuple[str, GradientReport], ...]
    smallest_peak_bytes: int | None
    smallest_peak_hash: str | None
    trials: int
