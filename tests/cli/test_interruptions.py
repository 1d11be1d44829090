"""A search that is killed, interrupted or started twice loses nothing and leaves nothing running."""

import signal

import pytest

from actune.errors import UsageError
from actune.store import Store
from tests.cli.conftest import SOUND, actune_process, ended, is_whole, wait_until
from tests.processes import marked_processes

pytestmark = pytest.mark.faults

SEARCH = ("search", "--target", SOUND, "--budget", "80%", "--study", "s", "--seed", 0, "--tolerance", 0)


def finished_trials(folder):
    try:
        with Store.open(f"sqlite:///{folder}/studies/actune.db", create=False) as store:
            return len(store.trials("s"))
    except UsageError:
        return 0  # the study is not there yet


def wait_for_trials(folder, count, process):
    wait_until(lambda: finished_trials(folder) >= count or process.poll() is not None, what=f"trial {count}")
    assert process.poll() is None, process.stderr.read()


def test_killed_at_several_points_it_ends_with_every_trial_once(tmp_path):
    process = actune_process(*SEARCH, "--trials", 7, "--workers", 2, folder=tmp_path, mark=tmp_path)
    for count in (1, 4):
        wait_for_trials(tmp_path, count, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not marked_processes(tmp_path), what="the end of the workers")
        assert is_whole(tmp_path / "studies" / "actune.db")
        process = actune_process("resume", "s", folder=tmp_path, mark=tmp_path)
    result = ended(process)
    assert result.code == 0, result.err
    document = ended(actune_process("show", "s", "--json", folder=tmp_path)).document
    assert document["finished"]
    for key in ("number", "plan_hash"):
        assert len({trial[key] for trial in document["trials"]}) == len(document["trials"]) == 7


def test_no_worker_survives_the_coordinator_in_the_middle_of_a_step(tmp_path):
    target = SOUND.replace(":Sound", ":ForwardHangs")
    process = actune_process("search", "--target", target, "--budget", "1GB", folder=tmp_path, mark=tmp_path)
    # Said by the coordinator on stderr once the worker has loaded the target and is asked for a step.
    assert any("measuring the peak without AC" in line for line in process.stderr)
    assert len(marked_processes(tmp_path)) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not marked_processes(tmp_path), what="the end of the worker")


def test_interrupted_it_can_be_resumed_and_nobody_else_may_meanwhile(tmp_path):
    # All plans fit, so that none is left out and the search does not end before it is interrupted.
    roomy = ["100%" if argument == "80%" else argument for argument in SEARCH]
    process = actune_process(*roomy, "--trials", 10_000, folder=tmp_path, mark=tmp_path)
    wait_for_trials(tmp_path, 1, process)
    second = ended(actune_process("resume", "s", folder=tmp_path))
    assert second.code == 1
    assert f"is being searched by process {process.pid}" in second.err
    before = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        wait_for_trials(tmp_path, before + 1, process)
        process.send_signal(number)
        result = ended(process)
        assert result.code == 130
        assert "interrupted" in result.err
        assert "Traceback" not in result.err
        wait_until(lambda: not marked_processes(tmp_path), what="the end of every process")
        before = finished_trials(tmp_path)
        process = actune_process("resume", "s", folder=tmp_path, mark=tmp_path)
    process.kill()
    process.communicate()
