"""The engine on a simulated cluster of two nodes: what any engine does, and what only a cluster can do to it."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from actune.engine.on_ray import RayEngine, bridge, ray_engine
from actune.errors import ActuneError, StorageError, UsageError
from actune.records import LoadTarget, Outcome
from tests.engine.contract import FAULTY, FULL, NONE, EngineTestCase, measure, request_of, wait_until
from tests.engine.ray_cluster import cluster  # noqa: F401
from tests.processes import marked_processes

pytestmark = pytest.mark.faults


@pytest.fixture
def inside(cluster, monkeypatch):  # noqa: F811
    """Ray's driver runs in the cluster's network namespace."""
    monkeypatch.setattr(bridge, "COMMAND", [*cluster.command_prefix, *bridge.COMMAND])
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("RAY_TMPDIR", cluster.folder)
    return cluster


@pytest.fixture
def engine_for(inside, tmp_path, mark):
    """Drivers have the test's mark, and none of them may be left; the nodes' processes have the cluster's."""

    def make(name, *, timeout_s=60.0, workers=1, **options):
        target = LoadTarget(name if ":" not in name and name.islower() else f"{FAULTY}:{name}", "cpu", 0)
        return RayEngine(replace(target, **options), workers=workers, timeout_s=timeout_s, log_folder=tmp_path / "logs")

    return make


@pytest.fixture
def workers(inside):
    return inside.workers


class TestRayEngine(EngineTestCase):
    cap_s = 12.0

    def make_ready(self, engine):
        """Each request loads the target anew."""

    def test_a_node_that_dies_is_an_outcome_and_the_next_trial_runs_on_another(self, engine_for, inside, tmp_path):
        with engine_for("ForwardHangs", timeout_s=1000.0) as engine, engine_for("Sound") as sound:
            asked = engine.submit(request_of(NONE))
            wait_until(inside.workers, what="a worker")
            (worker,) = inside.workers()
            node = inside.node_of(worker)
            inside.tell(f"kill {node}")
            died = asked.result()
            assert died.outcome is Outcome.CRASHED
            assert "died" in died.message
            wait_until(lambda: not inside.workers(), what="its worker's end")
            assert measure(sound, NONE).outcome is Outcome.OK
            inside.tell("add")
        assert "node " in (tmp_path / "logs" / "worker-1.log").read_text()

    def test_ray_worker_that_is_killed_is_an_outcome(self, engine_for, inside):
        with engine_for("ForwardHangs", timeout_s=1000.0) as engine:
            asked = engine.submit(request_of(NONE))
            wait_until(inside.workers, what="a worker")
            for pid in inside.ray_workers():
                os.kill(pid, signal.SIGKILL)
            died = asked.result()
            assert died.outcome is Outcome.CRASHED
            assert "the Ray worker died" in died.message
            wait_until(lambda: not inside.workers(), what="its worker's end")

    def test_driver_that_dies_costs_the_search_but_leaves_nothing(self, engine_for, inside, mark):
        with engine_for("ForwardHangs", timeout_s=1000.0) as engine:
            asked = engine.submit(request_of(NONE))
            wait_until(inside.workers, what="a worker")
            (driver,) = marked_processes(mark)
            os.kill(driver, signal.SIGKILL)
            with pytest.raises(ActuneError, match=r"the connection to the Ray cluster is lost.*ray\.log"):
                asked.result()
            wait_until(lambda: not inside.workers(), what="its worker's end")
            with pytest.raises(ActuneError, match="the connection to the Ray cluster is lost"):
                measure(engine, NONE)

    def test_node_of_another_kind_is_named(self, engine_for, monkeypatch):
        with engine_for("Sound") as engine:
            engine.load()
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
            with pytest.raises(UsageError, match=r"node \S+ \(\w{8}\): threads is 2, and 1 where the first worker ran"):
                measure(engine, FULL)

    def test_node_that_lacks_what_the_target_names_is_named(self, engine_for, tmp_path, monkeypatch):
        target = tmp_path / "mine.py"
        target.write_text(FAULTY.read_text())
        monkeypatch.chdir(tmp_path)
        with engine_for("dense-tiny", spec="mine.py:Sound") as engine:
            engine.load()
            target.rename(tmp_path / "elsewhere.py")
            with pytest.raises(UsageError, match=r"node \S+ \(\w{8}\): .*mine\.py.* at the same path on each node"):
                measure(engine, FULL)

    def test_node_with_another_actune_is_named(self, engine_for, monkeypatch):
        monkeypatch.setattr(ray_engine, "__version__", "0.0.1")
        with (
            engine_for("Sound") as engine,
            pytest.raises(ActuneError, match=r"node \S+ \(\w{8}\) has actune .* 0\.0\.1"),
        ):
            measure(engine, NONE)

    def test_ranks_of_a_job_are_placed_together(self, engine_for, inside):
        spec = f"{FAULTY.parent.parent.parent / 'sharded_targets.py'}:Sharded?layers=2&seq=16&batch=2"
        with engine_for("dense-tiny", spec=spec, nproc_per_node=2) as engine:
            assert engine.load().environment.device_name.endswith("(2 processes)")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"device": "cuda", "nproc_per_node": 2}, "needs a node with 2 GPUs and 2 CPUs, .* 1 CPUs and 0 GPUs"),
            ({"device": "cuda"}, "needs a node with one GPU and one CPU"),
        ],
    )
    def test_what_no_node_has_is_wrong_usage(self, engine_for, options, message):
        with engine_for("dense-tiny", **options) as engine, pytest.raises(UsageError, match=message):
            engine.load()

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("127.0.0.1:1", "nothing answers at the Ray address 127.0.0.1:1"),
            ("127.0.0.1", "expected HOST:PORT"),
            ("ray://127.0.0.1:10001", "is not that of a cluster which this machine is a node of"),
        ],
    )
    def test_address_of_no_cluster_is_wrong_usage(self, engine_for, monkeypatch, address, message):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with engine_for("dense-tiny") as engine, pytest.raises(UsageError, match=message):
            engine.load()

    def test_without_a_cluster_none_is_started(self, engine_for, monkeypatch, tmp_path):
        monkeypatch.delenv("RAY_ADDRESS")
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        # Ray looks for clusters among the processes that it sees.
        apart = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        monkeypatch.setattr(bridge, "COMMAND", [*apart, *bridge.COMMAND[-3:]])
        with engine_for("dense-tiny") as engine, pytest.raises(UsageError, match="there is no Ray cluster"):
            engine.load()

    @pytest.mark.timeout(400)  # each of some fifteen tasks imports torch
    def test_search_over_two_nodes_ends_with_a_verdict_and_is_quiet(self, inside, mark, tmp_path):
        search = start_search("Sound", inside, tmp_path)
        out, err = search.communicate(timeout=380)
        assert search.returncode == 0, err
        assert "best: " in out
        assert "raylet" not in out + err
        assert "network_util" not in err
        logs = [path.read_text() for path in (tmp_path / "studies" / "logs" / "sound").glob("worker-*.log")]
        assert len({log.splitlines()[0] for log in logs}) == 2

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_search_that_is_ended_leaves_nothing(self, inside, mark, tmp_path, number):
        search = start_search("ForwardHangs", inside, tmp_path)
        wait_until(inside.workers, what="a worker")
        search.send_signal(number)
        err = search.communicate(timeout=60)[1]
        if number is signal.SIGINT:
            assert search.returncode == 130, err
            assert not inside.workers()
        wait_until(lambda: not inside.workers() and not marked_processes(mark), what="the end of all")


def start_search(target, cluster, folder):  # noqa: F811
    options = ["--budget", "70%", "--trials", "2", "--engine", "ray", "--workers", "2", "--study", "sound"]
    return subprocess.Popen(
        [
            *(*cluster.command_prefix, sys.executable, "-c", "from actune.cli import main; main()"),
            *("search", "--target", f"{FAULTY}:{target}", *options),
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    target = LoadTarget("dense-tiny", "cpu", 0)
    with (
        RayEngine(target, workers=1, timeout_s=60.0, log_folder=tmp_path / "file" / "logs") as engine,
        pytest.raises(StorageError, match=r"ray\.log"),
    ):
        engine.load()


def test_ray_that_is_not_installed_is_wrong_usage(monkeypatch):
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'actune\[ray\]'"):
        RayEngine(LoadTarget("dense-tiny", "cpu", 0), workers=1, timeout_s=60.0, log_folder=FAULTY)
