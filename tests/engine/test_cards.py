"""Which card a worker gets, and the allocator's settings, found without torch."""

import subprocess
from pathlib import Path

import pytest

from actune.engine import LocalEngine, cards, local, worker_environments
from actune.engine.cards import VISIBLE, visible_cards
from actune.errors import UsageError
from actune.plan import Plan, dump_plan
from actune.records import LoadTarget, MeasurePlan, Outcome

FAULTY = Path(__file__).parent.parent / "cli" / "targets" / "faulty.py"
EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)\n"


@pytest.mark.parametrize(
    ("device", "workers", "environment", "expected"),
    [
        ("cpu", 3, {}, ({}, {}, {})),
        ("sim:h100", 2, {}, ({}, {})),
        ("cuda", 1, {}, (EXPANDABLE,)),
        ("cuda:1", 1, {}, (EXPANDABLE,)),
        ("cuda", 1, {"PYTORCH_ALLOC_CONF": "backend:native"}, ({},)),
        ("cuda", 1, {"PYTORCH_CUDA_ALLOC_CONF": ""}, ({},)),
        (
            "cuda",
            2,
            {"CUDA_VISIBLE_DEVICES": "3, GPU-5,7"},
            (EXPANDABLE | {"CUDA_VISIBLE_DEVICES": "3"}, EXPANDABLE | {"CUDA_VISIBLE_DEVICES": "GPU-5"}),
        ),
    ],
)
def test_each_worker_has_its_own_card(device, workers, environment, expected):
    assert worker_environments(device, workers, environment) == expected


@pytest.mark.parametrize(
    ("device", "visible", "message"),
    [
        ("cuda", "0", "1 CUDA devices are visible"),
        ("cuda", "", "0 CUDA devices are visible"),
        ("cuda", "0,-1,2", "1 CUDA devices are visible"),
        ("cuda:0", "0,1", "cuda:0 is one card"),
    ],
)
def test_workers_that_would_share_a_card_are_wrong_usage(device, visible, message):
    with pytest.raises(UsageError, match=message):
        worker_environments(device, 2, {"CUDA_VISIBLE_DEVICES": visible})


def test_cards_that_are_named_are_numbers_among_the_visible_ones():
    found = worker_environments("cuda", 2, {VISIBLE: "4,5,6"}, cards=("cuda:2", "cuda:0"))
    assert [variables[VISIBLE] for variables in found] == ["6", "4"]
    (one,) = worker_environments("cuda", 1, {VISIBLE: "4,5,6"}, cards=("cuda:1",))
    assert one[VISIBLE] == "5"
    jobs = worker_environments("cuda", 1, {VISIBLE: "4,5,6"}, nproc_per_node=2, cards=("cuda:0", "cuda:2"))
    assert [variables[VISIBLE] for variables in jobs] == ["4,6"]


@pytest.mark.parametrize(
    ("device", "cards", "workers", "message"),
    [
        ("cuda", ("cuda:3",), 1, "cuda:3 is not there: 3 CUDA devices are visible"),
        ("cuda", ("cuda:0", "cuda:0"), 2, "cuda:0 stands twice"),
        ("cuda", ("cpu",), 1, "'cpu' is no card"),
        ("cuda", ("cuda:01",), 1, "'cuda:01' is no card"),
        ("cuda", ("cuda:0",), 2, "--devices names 1, and each worker needs one of its own"),
        ("cpu", ("cuda:0",), 1, "names cards for --device cuda, not for 'cpu'"),
    ],
)
def test_cards_that_are_named_wrong_are_wrong_usage(device, cards, workers, message):
    with pytest.raises(UsageError, match=message):
        worker_environments(device, workers, {VISIBLE: "4,5,6"}, cards=cards)


@pytest.fixture
def driver(monkeypatch):
    def says(answer):
        def run(command, **options):
            assert command == ["nvidia-smi", "-L"]
            if isinstance(answer, Exception):
                raise answer
            return subprocess.CompletedProcess(command, 0, stdout=answer)

        monkeypatch.setattr(cards.subprocess, "run", run)

    return says


def test_the_driver_says_how_many_there_are(driver):
    driver(LISTED)
    assert visible_cards({}) == ["0", "1"]


def test_without_a_driver_the_user_is_asked(driver):
    driver(FileNotFoundError("nvidia-smi"))
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=0,1"):
        visible_cards({})


def test_of_cards_that_are_split_the_user_names_the_parts(driver):
    driver(LISTED + "  MIG 1g.10gb Device 0: (UUID: MIG-1)\n")
    with pytest.raises(UsageError, match="MIG"):
        visible_cards({})


def test_jobs_of_several_processes_have_as_many_cards():
    found = worker_environments("cuda", 2, {VISIBLE: "4,5,6,7,8"}, nproc_per_node=2)
    assert [variables[VISIBLE] for variables in found] == ["4,5", "6,7"]
    with pytest.raises(UsageError, match="--workers 3: 5 CUDA devices are visible, and each worker needs 2 of its own"):
        worker_environments("cuda", 3, {VISIBLE: "4,5,6,7,8"}, nproc_per_node=2)


def test_a_worker_that_dies_leaves_its_card_to_the_next_one(monkeypatch, tmp_path):
    places = ({"ACTUNE_TEST_PLACE": "a"}, {"ACTUNE_TEST_PLACE": "b"})
    monkeypatch.setattr(local, "worker_environments", lambda *_, **__: places)
    target = LoadTarget(f"{FAULTY}:KilledUnderAPlan", "cpu", 0)
    full = '[[rule]]\nlayers = ["*"]\nwrap = ["."]\npolicy = "full"\n'
    killer = MeasurePlan(f"schema = 1\n{full}", None, None, timed_pairs=0)
    with LocalEngine(target, workers=2, timeout_s=60.0, log_folder=tmp_path) as engine:
        engine.load()
        assert engine.measure(killer).outcome is Outcome.CRASHED
        request = MeasurePlan(dump_plan(Plan()), None, None, timed_pairs=0)
        both = [engine.submit(request) for _ in range(2)]
        assert [future.result().outcome for future in both] == [Outcome.OK] * 2
        found = [Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0") for worker in engine._alive]
        assert len(found) == 2
        assert {next(v for v in variables if v.startswith(b"ACTUNE_TEST_PLACE")) for variables in found} == {
            b"ACTUNE_TEST_PLACE=a",
            b"ACTUNE_TEST_PLACE=b",
        }
