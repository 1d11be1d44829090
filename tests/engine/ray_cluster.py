"""A Ray cluster on this machine, in a network namespace of its own: a head without CPUs and two nodes with one each.

Run as a process, it says where it is in a line of JSON and then obeys: `kill 0` is the death of a node, `add` a new
one. It answers with the process ids of the nodes' raylets and ends with its stdin.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.processes import MARK, left_behind, marked_processes

OBJECT_STORE_BYTES = 80 * 2**20  # Ray takes no less than 75 MiB
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
UNSHARE = ["unshare", "--net", "--map-root-user"]
ROOT = Path(__file__).parent.parent.parent


class RayCluster:
    """That process, as tests use it."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/dev/shm")  # the path of a socket has 107 bytes at most
        self.mark = self.folder
        environment = os.environ | {
            "RAY_TMPDIR": self.folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
            MARK: self.mark,
        }
        environment.pop("RAY_ADDRESS", None)
        self._process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "tests.engine.ray_cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        said = self._process.stdout.readline()
        assert said, "the cluster has not come up"
        self.address = json.loads(said)["address"]
        self.command_prefix = [
            *("nsenter", "--target", str(self._process.pid), "--user", "--preserve-credentials", "--net")
        ]

    def tell(self, command):
        """Has it obey, and waits until it has; returns what it says."""
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def workers(self):
        """Process ids of actune's workers on the nodes, and of what they started."""
        return [pid for pid in marked_processes(self.mark) if "actune.worker" in command_of(pid)]

    def ray_workers(self):
        """Process ids of the Ray workers that run a task."""
        return [pid for pid in marked_processes(self.mark) if "run_on_node" in command_of(pid)]

    def node_of(self, worker):
        """The number of the node that a worker of actune's runs on, as `kill` takes it."""
        raylet = parent_of(parent_of(worker))
        return self.tell("raylets").index(raylet)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def parent_of(pid):
    return int(re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def cluster():
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        reason = f"a network namespace of one's own is not to be had here: {tried.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = RayCluster()
    yield cluster
    cluster.close()
    assert not left_behind(lambda: marked_processes(cluster.mark))


def bring_loopback_up():
    """As `ip link set lo up`, which is not everywhere (netdevice(7))."""
    get_flags, set_flags, is_up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, get_flags, struct.pack("16sH14s", b"lo", 0, b""))
        flags = struct.unpack("16sH14s", request)[1]
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14s", b"lo", flags | is_up, b""))


def main():
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bring_loopback_up()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    print(json.dumps({"address": cluster.address}), file=says, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["kill", number]:
                cluster.remove_node(nodes[int(number)], allow_graceful=False)
            case ["add"]:
                nodes.append(cluster.add_node(**NODE))
        raylets = [node.all_processes["raylet"][0].process.pid if node.all_processes else None for node in nodes]
        print(json.dumps(raylets), file=says, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
