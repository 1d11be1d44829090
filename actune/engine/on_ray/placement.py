"""Which nodes of a cluster can run a target's trials, and how much of one a trial takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actune.errors import UsageError
from actune.records import LoadTarget


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive, and what it was started with."""

    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Share:
    """What a task takes of its node. Ray gives all of it at once and on one node, or nothing yet."""

    cpus: int
    gpus: int

    def fits(self, node: Node) -> bool:
        """Whether the node has that much when nothing runs on it."""
        return node.cpus >= self.cpus and node.gpus >= self.gpus


def nodes_alive(described: Iterable[Mapping[str, Any]]) -> list[Node]:
    """From what `ray.nodes()` returns."""
    return [
        Node(
            f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})",
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in described
        if node["Alive"]
    ]


def check_device(device: str) -> None:
    """Raises UsageError if the device names a card, which is Ray's to choose."""
    if re.fullmatch(r"cuda:\d+", device):
        raise UsageError(f"--device {device}: with --engine ray, Ray chooses each trial's cards. Give --device cuda.")


def share_of(target: LoadTarget, nodes: Sequence[Node]) -> Share:
    """What a request takes of a node.

    On a CPU a whole node, as trials beside each other would disturb each other's times: as many CPUs as the largest
    node has. Smaller ones are of another kind, and get no trials. On `cuda` a card and a CPU for each process. A
    simulated device computes nothing and has a clock of its own: one CPU.

    Raises:
        UsageError: no node has that much.
    """
    check_device(target.device)
    count = target.nproc_per_node
    if target.device == "cuda":
        share = Share(cpus=count, gpus=count)
    elif target.device == "cpu":
        share = Share(cpus=max([1, *(node.cpus for node in nodes)]), gpus=0)
    else:
        share = Share(cpus=1, gpus=0)
    if not any(share.fits(node) for node in nodes):
        raise UsageError(f"{described(share)}. {listed(nodes)} {ADVICE}")
    return share


ADVICE = (
    "Start Ray on a node that has it, or ask for less (--nproc-per-node). One such node has to be there as the search "
    "starts, also where a cluster grows by itself."
)


def described(share: Share) -> str:
    """What no node has."""
    needs = f"{share.cpus} CPUs" if share.cpus > 1 else "one CPU"
    if share.gpus:
        needs = f"{share.gpus} GPUs and {needs}" if share.gpus > 1 else f"one GPU and {needs}"
    return f"a trial needs a node with {needs}, and the Ray cluster has none"


def listed(nodes: Sequence[Node]) -> str:
    """What there is."""
    if not nodes:
        return "It has no node that is alive."
    return "Its nodes: " + ", ".join(f"{node.name} with {node.cpus} CPUs and {node.gpus} GPUs" for node in nodes) + "."
