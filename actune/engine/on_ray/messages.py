"""What the coordinator, the process that is connected to Ray, and the tasks on nodes say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actune.op_trace import LayersTraced
from actune.records import GradientReport, Loaded, LoadTarget, Measured, Request, RoundsMeasured
from actune.step_profile import PlanProfiled

Answer = Measured | RoundsMeasured | GradientReport | PlanProfiled | LayersTraced
"""What a request other than LoadTarget ends with if nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one task does: a worker loads the target and carries a request out.

    Attributes:
        request: None to load only.
        timeout_s: of loading, and of the request.
        folder: where the worker runs if there is such a folder on its node; None to stay where Ray puts it.
        environment: the variables in `CARRIED` as the coordinator has them; those that it lacks are unset.
        version: of the coordinator's actune.
    """

    load: LoadTarget
    request: Request | None
    timeout_s: float
    folder: str | None
    environment: dict[str, str]
    version: str


@dataclass(frozen=True, slots=True)
class Problem:
    """The error that a task ended with: what LocalEngine raises, in plain words.

    Attributes:
        blame: which of actune's errors it is.
        detail: a traceback or the end of a worker's output.
    """

    blame: Literal["plan", "usage", "memory", "target", "other"]
    message: str
    detail: str | None = None


# Commands to the process that is connected to Ray; the end of its stdin asks it to cancel everything and to end.


@dataclass(frozen=True, slots=True)
class Connect:
    """The first command.

    Attributes:
        address: the cluster's, None for the one that Ray finds.
        target: for what it takes to run it.
    """

    address: str | None
    target: LoadTarget
    kind: Literal["connect"] = "connect"


@dataclass(frozen=True, slots=True)
class Submit:
    """Runs a job as a task."""

    number: int
    job: Job
    kind: Literal["submit"] = "submit"


# What it says


@dataclass(frozen=True, slots=True)
class Connected:
    """The cluster is there and has a node that can run the target."""

    kind: Literal["connected"] = "connected"


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no such cluster, or none that can run the target."""

    message: str
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True)
class Started:
    """A task runs, on this node. Its time counts from here."""

    node: str
    kind: Literal["started"] = "started"


@dataclass(frozen=True, slots=True)
class Ended:
    """A task came to its end.

    Attributes:
        node: where.
        loaded: what loading taught; None if it failed.
        answer: to the request.
        problem: why there is none.
        logs: by file name, the end of what the worker printed.
    """

    node: str
    loaded: Loaded | None
    answer: Answer | None
    problem: Problem | None
    logs: dict[str, str]
    kind: Literal["ended"] = "ended"


@dataclass(frozen=True, slots=True)
class Lost:
    """A task did not come to its end.

    Attributes:
        cause: `crashed`: its node or its Ray worker died; `oom`: Ray's memory monitor killed it; `timeout`: it is long
            over its time; `closed`: cancelled; `unplaceable`: no node can run it any more; `broken`: its node can't run
            actune.
        message: one line.
    """

    cause: Literal["crashed", "oom", "timeout", "closed", "unplaceable", "broken"]
    message: str
    kind: Literal["lost"] = "lost"


@dataclass(frozen=True, slots=True)
class Event:
    """What became of the task of a number: `Ended` and `Lost` are the last of it."""

    number: int
    what: Ended | Lost
    kind: Literal["event"] = "event"
