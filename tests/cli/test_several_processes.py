"""Jobs of two ranks, and one rank of a large job, through the command line."""

import signal
from pathlib import Path

import pytest

from tests.cli.conftest import actune_process, ended, wait_until
from tests.processes import left_behind, marked_processes

SHARDED = f"{Path(__file__).parent.parent / 'sharded_targets.py'}:Sharded?layers=2&seq=64&batch=4"


def test_search_with_two_ranks_finds_a_verified_plan_and_leaves_no_process(tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("schema: 1\nmenu:\n- {policy: none}\n- {policy: full}\npresets: [full, none]\n")
    arguments = ["search", "--target", SHARDED, "--budget", "80%", "--space", space, "--trials", 3, "--json"]
    search = actune_process(*arguments, "--nproc-per-node", 2, "--study", "two", folder=tmp_path, mark=tmp_path)
    result = ended(search)
    assert result.code == 0, result.err
    assert not left_behind(lambda: marked_processes(tmp_path))
    best = result.document["best"]
    assert best["gradients_equal"]
    assert best["predicted_peak_bytes"] == best["peak_bytes"] <= result.document["budget_bytes"]
    logs = {path.name for path in (tmp_path / "studies" / "logs" / "two").iterdir()}
    assert {"worker-1-rank0.log", "worker-1-rank1.log"} <= logs
    other = ended(actune_process("search", "--study", "two", "--nproc-per-node", 1, folder=tmp_path))
    assert other.code == 2
    assert "was started with --nproc-per-node 2, not 1" in other.err


def test_no_rank_survives_the_coordinator_in_the_middle_of_a_step(tmp_path):
    target = SHARDED.replace(":Sharded", ":LastRankHangs")
    arguments = ["measure", "--target", target, "--plan", "full", "--nproc-per-node", 2]
    process = actune_process(*arguments, folder=tmp_path, mark=tmp_path)
    assert any("measuring the peak" in line for line in process.stderr)
    assert len(marked_processes(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not marked_processes(tmp_path), what="the end of the ranks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nproc-per-node", 2, "--device", "sim:tiny"], "needs a real device, not 'sim:tiny'"),
        (["--nproc-per-node", 2, "--world-size", 4], "exclude each other"),
    ],
)
def test_ranks_that_cannot_be_are_wrong_usage(actune, options, message):
    result = actune("measure", "--target", SHARDED, "--plan", "none", *options)
    assert result.code == 2
    assert message in result.err


def test_one_rank_of_many_needs_parallelize(actune):
    unsharded = SHARDED.replace(":Sharded", ":Unsharded")
    result = actune("measure", "--target", unsharded, "--plan", "none", "--world-size", 64)
    assert result.code == 2
    assert "has no parallelize(), so each of 64 processes" in result.err
