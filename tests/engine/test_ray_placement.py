"""What a request takes of a node, and what it means that a task came to no end. No cluster is needed."""

import io
import json

import pytest
from ray import exceptions

from actune.engine.on_ray import driver
from actune.engine.on_ray.driver import Driver, _Call, lost
from actune.engine.on_ray.placement import Node, Share, nodes_alive, share_of
from actune.errors import UsageError
from actune.records import LoadTarget

SMALL, LARGE, CARDS = Node("small", 4, 0), Node("large", 16, 0), Node("cards", 8, 4)


@pytest.mark.parametrize(
    ("device", "nproc", "nodes", "expected"),
    [
        ("cpu", 1, [SMALL, LARGE], Share(16, 0)),  # a whole one
        ("cpu", 2, [SMALL], Share(4, 0)),
        ("cuda", 1, [SMALL, CARDS], Share(1, 1)),
        ("cuda", 4, [SMALL, CARDS], Share(4, 4)),
        ("sim:h100", 1, [SMALL], Share(1, 0)),
    ],
)
def test_what_a_request_takes(device, nproc, nodes, expected):
    assert share_of(LoadTarget("dense-tiny", device, 0, nproc_per_node=nproc), nodes) == expected


@pytest.mark.parametrize(
    ("device", "nproc", "nodes", "message"),
    [
        ("cuda", 8, [CARDS, Node("more", 8, 4)], "a node with 8 GPUs and 8 CPUs, .*cards with 8 CPUs and 4 GPUs, more"),
        ("cuda", 1, [SMALL], "a node with one GPU and one CPU, .*small with 4 CPUs and 0 GPUs"),
        ("cpu", 1, [Node("head", 0, 0)], "a node with one CPU, and the Ray cluster has none"),
        ("sim:h100", 1, [], "no node that is alive"),
        ("cuda:1", 1, [CARDS], "Ray chooses each trial's cards"),
    ],
)
def test_what_no_node_has_is_wrong_usage(device, nproc, nodes, message):
    with pytest.raises(UsageError, match=message):
        share_of(LoadTarget("dense-tiny", device, 0, nproc_per_node=nproc), nodes)


def test_the_dead_are_no_nodes():
    described = {"NodeManagerHostname": "a", "NodeID": "0123456789", "Resources": {"CPU": 2.0, "GPU": 1.0}}
    alive, dead = described | {"Alive": True}, described | {"Alive": False}
    assert nodes_alive([alive, dead]) == [Node("a (01234567)", 2, 1)]


def failed(cause):
    return exceptions.RayTaskError("run_on_node", "Traceback", cause)


@pytest.mark.parametrize(
    ("error", "cause", "message"),
    [
        (exceptions.TaskCancelledError(), "closed", "given up"),
        (failed(exceptions.TaskCancelledError()).as_instanceof_cause(), "closed", "given up"),
        (exceptions.OutOfMemoryError("killed"), "oom", "ran out of memory"),
        (exceptions.NodeDiedError("died"), "crashed", "node a (0123) died"),
        (exceptions.WorkerCrashedError(), "crashed", "the Ray worker died (WorkerCrashedError)"),
        (exceptions.LocalRayletDiedError(), "crashed", "the Ray worker died"),
        (exceptions.ObjectLostError("00", None, ""), "crashed", "the Ray worker died"),
        (failed(ModuleNotFoundError("no module named 'actune'")), "broken", "no module named 'actune'"),
        (exceptions.RuntimeEnvSetupError("no pip"), "broken", "no pip"),
        (exceptions.TaskUnschedulableError("never"), "unplaceable", "never"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_ray_raises_has_a_meaning(error, cause, message):
    found = lost(error, "a (0123)")
    assert found.cause == cause
    assert message in found.message


def test_a_node_that_has_not_said_its_name_has_an_address():
    assert lost(failed(ModuleNotFoundError("no module")), None).message.startswith("node ")
    assert lost(exceptions.OutOfMemoryError("killed"), None).message.startswith("a node: ")


@pytest.fixture
def watching(monkeypatch):
    """A driver, the calls that it cancels, and what it says."""
    cancelled, said = [], io.BytesIO()
    monkeypatch.setattr(driver.ray, "cancel", lambda refs, force=False: cancelled.append((refs, force)))
    watched = Driver(said)
    watched._share, watched._capable_s = Share(1, 1), 0.0
    return watched, cancelled, lambda: [json.loads(line) for line in said.getvalue().splitlines()]


def test_waiting_for_a_node_is_no_timeout_unless_none_can_come(watching):
    watched, cancelled, said = watching
    watched._calls = [_Call(1, timeout_s=5.0, refs="first", submitted_s=0.0)]
    watched._look(10_000.0, [CARDS])
    watched._look(10_000.0 + driver.PATIENCE_S, [SMALL])
    assert not said()
    watched._look(10_001.0 + driver.PATIENCE_S, [SMALL])
    assert cancelled == [("first", False)]
    assert [(event["number"], event["what"]["cause"]) for event in said()] == [(1, "unplaceable")]
    assert "small with 4 CPUs and 0 GPUs" in said()[0]["what"]["message"]


def test_a_task_on_a_node_that_hangs_is_a_timeout_once_both_caps_are_over(watching):
    watched, cancelled, said = watching
    watched._calls = [_Call(1, timeout_s=5.0, refs="first", submitted_s=0.0, started_s=100.0, node="a (0123)")]
    watched._look(110.0 + driver.MARGIN_S, [CARDS])
    assert not said()
    watched._look(111.0 + driver.MARGIN_S, [CARDS])
    watched._look(200.0 + driver.MARGIN_S, [CARDS])
    assert cancelled == [("first", True)]
    assert [(event["number"], event["what"]["cause"]) for event in said()] == [(1, "timeout")]
