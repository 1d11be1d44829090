"""A job of two ranks is one worker: its replies agree, its failures are one outcome, and no rank is left behind."""

from pathlib import Path

import pytest

from actune.engine import LocalEngine
from actune.errors import TargetError, UsageError
from actune.plan import Plan, Rule, Treatment, dump_plan
from actune.records import CompareGradients, LoadTarget, MeasurePlan, MeasureRounds, Outcome
from tests.processes import left_behind, marked_processes

TARGETS = Path(__file__).parent.parent / "sharded_targets.py"
NONE = dump_plan(Plan())
FULL = dump_plan(Plan((Rule(("*",), Treatment("full")),)))


@pytest.fixture
def engine_for(tmp_path, mark):
    def make(name):
        target = LoadTarget(f"{TARGETS}:{name}?layers=2&seq=16&batch=2", "cpu", 0, nproc_per_node=2)
        return LocalEngine(target, workers=1, timeout_s=120.0, log_folder=tmp_path / "logs")

    return make


def measure(engine, toml, **options):
    return engine.measure(MeasurePlan(toml, None, None, timed_pairs=0, **options))


@pytest.mark.parametrize(
    ("name", "outcome", "messages"),
    [
        ("LastRankRaises", Outcome.ERROR, ["rank 1: ValueError: this rank has had enough"]),
        ("LastRankKilled", Outcome.CRASHED, ["rank 1: the worker was killed by SIGKILL"]),
        pytest.param("LastRankHangs", Outcome.TIMEOUT, ["rank 1", "--trial-timeout"], marks=pytest.mark.faults),
    ],
)
def test_a_failure_of_one_rank_is_one_outcome(engine_for, monkeypatch, tmp_path, mark, name, outcome, messages):
    monkeypatch.setattr("actune.engine.group.GRACE_S", 1.0)
    with engine_for(name) as engine:
        loaded = engine.load()
        assert loaded.environment.device_name.endswith("(2 processes)")
        assert measure(engine, NONE).outcome is Outcome.OK
        assert len(marked_processes(mark)) == 2
        monkeypatch.setattr(engine, "_timeout_s", 5.0 if outcome is Outcome.TIMEOUT else 120.0)
        failed = measure(engine, FULL)
        assert not left_behind(lambda: marked_processes(mark))  # though the engine is not closed yet
    assert failed.outcome is outcome
    assert all(message in failed.message for message in messages)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["worker-1-rank0.log", "worker-1-rank1.log"]
    if outcome is Outcome.TIMEOUT:
        assert "in misbehave" in failed.detail


def test_ranks_answer_all_requests_and_decide_alike(engine_for, mark):
    with engine_for("Sharded") as engine:
        engine.load()
        before = marked_processes(mark)
        none, full = measure(engine, NONE), measure(engine, FULL)
        assert full.peak_bytes < none.peak_bytes
        # Ranks have batches of the same sizes, but rank 1 draws others; a budget that one of them would pass is over.
        over = engine.measure(MeasurePlan(NONE, FULL, none.peak_bytes - 1, timed_pairs=2))
        assert (over.outcome, over.peak_bytes) == (Outcome.OVER_BUDGET, none.peak_bytes)
        timed = engine.measure(MeasurePlan(FULL, NONE, none.peak_bytes, timed_pairs=3))
        assert len(timed.pairs) == 3
        assert len(engine.measure_rounds(MeasureRounds((NONE, FULL), 2)).samples) == 2
        report = engine.compare_gradients(CompareGradients(FULL, NONE))
        assert report.equal
        assert report.bitwise
        assert report.compared
        assert marked_processes(mark) == before


def test_ranks_that_build_different_models_are_the_targets_fault(engine_for):
    with engine_for("LastRankBuildsAnother") as engine, pytest.raises(TargetError, match="rank 1 builds another model"):
        engine.load()


def test_processes_without_parallelize_are_wrong_usage(engine_for):
    with engine_for("Unsharded") as engine, pytest.raises(UsageError, match=r"has no parallelize\(\)"):
        engine.load()
