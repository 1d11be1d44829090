"""What needs no card of the CUDA device, against a card that is a few numbers: torch.cuda's functions are exchanged.

What needs a real card is in tests/gpu.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from actune.errors import UsageError
from actune.measure import Workload, measure_plan, open_device
from actune.measure.cuda import CONTEXT_BYTES, STEADY_BYTES, CudaDevice
from actune.plan import Plan, Treatment, dump_plan
from actune.records import Measurement, MeasurePlan, Outcome
from tests.ac.models import uniform
from tests.measure.targets import Plain

GB = 10**9
TOTAL_BYTES = 80 * GB
BUDGET_BYTES = 50 * GB
OUTSIDE_BYTES = GB // 2
FULL, NONE = dump_plan(uniform(Treatment("full"))), dump_plan(Plan())
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …")


class Event:
    """Shows the card's clock, in milliseconds as CUDA's do."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def record(self) -> None:
        self._at_s = self._card.clock_s

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return (end._at_s - self._at_s) * 1e3


class Card:
    """An allocator that keeps count, and reserves as much as it ever gave out."""

    def __init__(self) -> None:
        self.outside_bytes = OUTSIDE_BYTES
        self.allocated_bytes = self.reserved_bytes = 0
        self.highest_allocated_bytes = self.highest_reserved_bytes = 0
        self.retries = 0
        self.fraction = 1.0
        self.clock_s = 0.0
        self.log: list[str] = []

    def allocate(self, size_bytes: int) -> None:
        """Frees, if it is negative."""
        self.allocated_bytes += size_bytes
        self.reserved_bytes = max(self.reserved_bytes, self.allocated_bytes)
        self.highest_allocated_bytes = max(self.highest_allocated_bytes, self.allocated_bytes)
        self.highest_reserved_bytes = max(self.highest_reserved_bytes, self.reserved_bytes)

    def reset_peaks(self, device: object) -> None:
        self.log.append("reset peaks")
        self.highest_allocated_bytes, self.highest_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    def empty_cache(self) -> None:
        self.log.append("empty cache")
        self.reserved_bytes = self.allocated_bytes

    def set_fraction(self, fraction: float, device: object) -> None:
        self.fraction = fraction

    def functions(self) -> dict[str, object]:
        return {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "set_device": lambda device: None,
            "init": lambda: None,
            "synchronize": lambda device=None: None,
            "get_device_properties": lambda device: SimpleNamespace(name="A card", total_memory=TOTAL_BYTES),
            "mem_get_info": lambda device: (TOTAL_BYTES - self.reserved_bytes - self.outside_bytes, TOTAL_BYTES),
            "memory_allocated": lambda device: self.allocated_bytes,
            "memory_reserved": lambda device: self.reserved_bytes,
            "max_memory_allocated": lambda device: self.highest_allocated_bytes,
            "max_memory_reserved": lambda device: self.highest_reserved_bytes,
            "memory_stats": lambda device: {"num_alloc_retries": self.retries} if self.retries else {},
            "reset_peak_memory_stats": self.reset_peaks,
            "empty_cache": self.empty_cache,
            "set_per_process_memory_fraction": self.set_fraction,
            "Event": lambda enable_timing: Event(self),
        }


@pytest.fixture
def card(monkeypatch):
    card = Card()
    for name, function in card.functions().items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: card.log.append("clear workspaces"), raising=False
    )
    # Nothing here is freed by it, and it takes longer than all else.
    monkeypatch.setattr("actune.measure.cuda.gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr(Scripted, "card", card)
    monkeypatch.setattr(Scripted, "step", lambda card, number: None)
    return card


class OnProcessor(CudaDevice):
    """The card's device, whose tensors are the processor's."""

    def __init__(self) -> None:
        super().__init__("cuda")
        self.torch_device = torch.device("cpu")


class Scripted(Plain):
    """Each step does to the card what the test says, and notes what the cap was."""

    card: Card | None = None
    step = staticmethod(lambda card, number: None)

    def __init__(self):
        super().__init__()
        self.fractions = []

    def loss(self, model, batch):
        self.fractions.append(self.card.fraction)
        self.card.clock_s += 1.0
        type(self).step(self.card, len(self.fractions))
        return super().loss(model, batch)


def trial(
    card: Card, *, budget_bytes: int | None = BUDGET_BYTES, reference_toml: str | None = None
) -> tuple[Measurement, bool, list[float]]:
    workload = Workload("tests.measure.test_cuda_fakes:Scripted", OnProcessor(), seed=0)
    measured = measure_plan(workload, MeasurePlan(FULL, reference_toml, budget_bytes, timed_pairs=2))
    assert card.fraction == 1.0, "the cap is lifted at the end of every trial"
    return measured.measurement, measured.worker_spent, workload.target._methods["loss"].__self__.fractions


@pytest.mark.parametrize(
    ("budget_bytes", "fraction"),
    [
        (BUDGET_BYTES, (50 - 0.5) / 80),
        (None, 1.0),
        (90 * GB, 1.0),
        (GB // 4, 0.0),  # what lies outside of the allocator is more than the budget
    ],
)
def test_the_cap_is_what_the_budget_leaves_to_the_allocator(card, budget_bytes, fraction):
    card.allocate(10 * GB)
    CudaDevice("cuda").set_cap(budget_bytes)
    assert card.fraction == fraction


def test_a_peak_is_what_is_reserved_and_what_lies_outside_as_the_step_ends(card):
    device = CudaDevice("cuda")
    card.allocate(70 * GB)  # before the step
    card.allocate(-60 * GB)
    card.empty_cache()
    with device.peak_probe() as probe:
        card.allocate(20 * GB)
        card.allocate(-15 * GB)
        card.outside_bytes += 2**20
    assert probe.allocated_bytes == probe.reserved_bytes == 30 * GB
    assert probe.peak_bytes == 30 * GB + OUTSIDE_BYTES + 2**20
    assert (probe.allocator_retries, probe.note) == (0, None)


def test_retries_are_those_of_the_step(card):
    card.retries = 3
    with CudaDevice("cuda").peak_probe() as probe:
        card.retries += 2
    assert probe.allocator_retries == 2


@pytest.mark.parametrize("moved_bytes", [2 * STEADY_BYTES, -2 * STEADY_BYTES])
def test_a_card_that_another_process_works_on_is_noticed(card, moved_bytes):
    with CudaDevice("cuda").peak_probe() as probe:
        card.outside_bytes += moved_bytes
    assert "another process is at work on the card" in probe.note


def test_a_card_that_another_process_holds_memory_of_is_noticed(card):
    card.outside_bytes = CONTEXT_BYTES + 1
    with CudaDevice("cuda").peak_probe() as probe:
        pass
    assert "2.0 GiB were taken before the target was there" in probe.note


def test_stretches_are_over_what_was_allocated_at_their_start(card):
    card.allocate(5)
    with CudaDevice("cuda").memory_recorder() as recorder:
        card.allocate(10)
        card.allocate(-4)
        recorder.mark()
        card.allocate(3)
        card.allocate(-8)
        recorder.mark()
    assert [tuple(stretch) for stretch in recorder.stretches] == [(6, 10), (-5, 3), (0, 0)]


def test_times_are_between_events_in_seconds(card):
    device = CudaDevice("cuda")

    def step():
        card.clock_s += 0.25

    assert device.timed(step).step_time_s == 0.25
    with device.step_timer() as timer:
        step()
        timer.mark()
        step()
        step()
    assert timer.stretches_s == [0.25, 0.5]


def test_a_trial_starts_without_workspaces_cache_and_peaks(card):
    CudaDevice("cuda").clean_up()
    assert card.log == ["clear workspaces", "empty cache", "reset peaks"]


@pytest.mark.parametrize(
    ("variables", "allocator"),
    [
        ({}, ""),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
    ],
)
def test_the_environment_has_the_allocators_settings(card, monkeypatch, variables, allocator):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment = CudaDevice("cuda").environment()
    assert (environment.device_total_bytes, environment.allocator) == (TOTAL_BYTES, allocator)


def test_a_card_that_is_not_there_is_wrong_usage(card):
    with pytest.raises(UsageError, match="has 1 CUDA devices"):
        open_device("cuda:1")


def test_only_the_steps_whose_peak_counts_are_under_the_cap(card):
    measurement, _, fractions = trial(card, reference_toml=NONE)
    assert measurement.outcome is Outcome.OK
    warm_up, *probed = fractions[:3]
    assert warm_up == 1.0
    assert probed == [(50 - 0.5) / 80] * 2
    assert set(fractions[3:]) == {1.0}


def test_what_tuning_reserves_in_the_warm_up_is_not_the_plans(card, monkeypatch):
    def step(card, number):
        size_bytes = 60 * GB if number == 1 else 30 * GB
        card.allocate(size_bytes)
        card.allocate(-size_bytes)

    monkeypatch.setattr(Scripted, "step", step)
    measurement, _, _ = trial(card)
    assert (measurement.outcome, measurement.peak_bytes) == (Outcome.OK, 30 * GB + OUTSIDE_BYTES)


def retry_in_step_3(card, number):
    card.retries += number == 3


@pytest.mark.parametrize(("uncapped_gb", "outcome"), [(49, Outcome.OK), (60, Outcome.OVER_BUDGET)])
def test_what_a_plan_that_the_cap_squeezes_reserves_without_it_decides(card, monkeypatch, uncapped_gb, outcome):
    def step(card, number):
        size_bytes = (30 if card.fraction < 1 else uncapped_gb) * GB
        card.allocate(size_bytes)
        card.allocate(-size_bytes)
        card.retries += card.fraction < 1

    monkeypatch.setattr(Scripted, "step", step)
    measurement, spent, fractions = trial(card)
    assert (measurement.outcome, measurement.peak_bytes) == (outcome, uncapped_gb * GB + OUTSIDE_BYTES)
    assert not spent
    # The warm-up, a step under the cap, and then steps without it.
    assert fractions[:3] == [1.0, (50 - 0.5) / 80, 1.0]


def test_a_plan_that_is_squeezed_without_a_cap_too_is_out_of_memory(card, monkeypatch):
    def step(card, number):
        card.retries += 1

    monkeypatch.setattr(Scripted, "step", step)
    measurement, _, _ = trial(card)
    assert (measurement.outcome, measurement.peak_bytes) == (Outcome.OOM, None)
    assert "at the edge of what the device has" in measurement.message


def test_a_plan_that_the_card_squeezes_is_out_of_memory(card, monkeypatch):
    monkeypatch.setattr(Scripted, "step", retry_in_step_3)
    measurement, spent, _ = trial(card, budget_bytes=TOTAL_BYTES)
    assert (measurement.outcome, measurement.peak_bytes) == (Outcome.OOM, None)
    assert spent


def test_without_a_budget_a_squeezed_plan_is_measured_and_the_edge_is_named(card, monkeypatch):
    monkeypatch.setattr(Scripted, "step", retry_in_step_3)
    measurement, _, _ = trial(card, budget_bytes=None)
    assert measurement.outcome is Outcome.OK
    assert "at the edge of what the device has" in measurement.message


def test_out_of_memory_under_the_cap_is_over_the_budget_and_says_what_was_asked_for(card, monkeypatch):
    def step(card, number):
        if card.fraction < 1:
            card.allocate(45 * GB)
            card.allocate(-45 * GB)
            raise OUT_OF_MEMORY

    monkeypatch.setattr(Scripted, "step", step)
    measurement, spent, fractions = trial(card)
    assert (measurement.outcome, measurement.peak_bytes) == (Outcome.OVER_BUDGET, None)
    assert measurement.allocated_bytes == 45 * GB
    assert measurement.message.endswith("with up to 41.9 GiB allocated, 2.00 GiB more were asked for")
    assert not spent, "a clean refusal: the worker goes on"
    assert len(fractions) == 2


def test_out_of_memory_without_a_cap_names_the_device(card, monkeypatch):
    def step(card, number):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(Scripted, "step", step)
    measurement, _, _ = trial(card)
    assert measurement.outcome is Outcome.OVER_BUDGET
    assert measurement.message.startswith("needs more than the device has")


def test_a_plan_that_runs_but_not_beside_the_reference_is_not_over_the_budget(card, monkeypatch):
    def step(card, number):
        if number > 3:
            raise OUT_OF_MEMORY

    monkeypatch.setattr(Scripted, "step", step)
    measurement, spent, _ = trial(card, reference_toml=NONE)
    assert (measurement.outcome, measurement.peak_bytes) == (Outcome.OOM, OUTSIDE_BYTES)
    assert spent
