"""Targets that misbehave: exit code 4, what is wrong, where its traceback is, and nothing left running."""

import pytest

from tests.cli.conftest import FAULTY, actune_process, ended, is_whole, wait_until
from tests.processes import marked_processes


@pytest.mark.parametrize(
    ("name", "says", "kept"),
    [
        ("ModelRaises", "model() raised ValueError: the weights are missing", "ValueError"),
        ("ForwardRaises", "RuntimeError: shapes do not fit", "RuntimeError"),
        ("KillsItself", "killed by SIGKILL", None),
        ("SysExits", "SystemExit: 3", "SystemExit"),
        ("Segfaults", "killed by SIGSEGV", "faulty.py"),
        ("NoLayers", "no repeated layers are found in Linear", None),
    ],
)
def test_target_at_fault(tmp_path, name, says, kept):
    search = ("search", "--target", f"{FAULTY}:{name}", "--budget", "60%", "--study", "s", "--json")
    result = ended(actune_process(*search, folder=tmp_path, mark=tmp_path))
    assert result.code == 4, result.err
    assert says in result.err
    assert "Traceback (most recent call last)" not in result.err
    assert result.out == ""
    if kept is not None:
        path = result.err.strip().rpartition(" is in ")[2]
        assert kept in (tmp_path / path).read_text()
    assert is_whole(tmp_path / "studies" / "actune.db")
    wait_until(lambda: not marked_processes(tmp_path), what="the end of every process")


@pytest.mark.faults
@pytest.mark.parametrize("target", [f"{FAULTY}:ModelHangs", f"{FAULTY.with_name('hangs_in_import.py')}:Target"])
def test_target_that_hangs_is_ended(tmp_path, target):
    search = ("search", "--target", target, "--budget", "60%", "--trial-timeout", "4s", "--study", "s")
    result = ended(actune_process(*search, folder=tmp_path, mark=tmp_path))
    assert result.code == 4, result.err
    assert "no reply to 'load' within 4 s, the cap that --trial-timeout sets" in result.err
    wait_until(lambda: not marked_processes(tmp_path), what="the end of every process")


def test_target_that_never_fits_in_memory(tmp_path):
    search = ("search", "--target", f"{FAULTY}:OutOfMemory", "--budget", "60%", "--study", "s")
    result = ended(actune_process(*search, folder=tmp_path))
    assert result.code == 2
    assert "Give the budget as a size" in result.err


def test_corrected_target_runs_under_the_same_command(tmp_path):
    good = FAULTY.read_text()
    path = tmp_path / "target.py"
    search = ("search", "--target", "target.py:Sound", "--budget", "100%", "--trials", 1, "--study", "s")
    path.write_text(good.replace("return model(batch).square().mean()", "return model(batch).sqare().mean()"))
    result = ended(actune_process(*search, folder=tmp_path))
    assert result.code == 4
    assert "sqare" in result.err
    path.write_text(good)
    result = ended(actune_process(*search, folder=tmp_path))
    assert result.code == 0, result.err
