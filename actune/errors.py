"""The one family of errors. Each knows the exit code that the command line ends with."""

from __future__ import annotations

from pathlib import Path


class ActuneError(Exception):
    """An error that actune explains itself: the message gives the value, what was expected, and what to do."""

    exit_code = 1


class UsageError(ActuneError):
    """What the user asked for does not exist or does not parse: a target, a study, a space, a budget, an option."""

    exit_code = 2


class PlanError(UsageError):
    """A plan that does not parse, or that does not fit the model it is applied to."""


class InfeasibleError(ActuneError):
    """No plan fits the budget."""

    exit_code = 3

    def __init__(self, message: str, *, smallest_peak_bytes: int | None = None) -> None:
        super().__init__(message)
        self.smallest_peak_bytes = smallest_peak_bytes


class InfeasibleBudgetError(InfeasibleError):
    """No choice of treatments is predicted to fit the budget.

    Attributes:
        choice: for each layer the number of its option, in a choice that reaches `smallest_peak_bytes`.
    """

    def __init__(self, message: str, *, smallest_peak_bytes: int, choice: tuple[int, ...]) -> None:
        super().__init__(message, smallest_peak_bytes=smallest_peak_bytes)
        self.choice = choice


class CostError(ActuneError):
    """The cost model can't say what a plan costs."""


class TargetError(ActuneError):
    """The target is at fault: its code raised, hung or died, whatever the plan."""

    exit_code = 4

    def __init__(self, message: str, *, traceback_path: Path | None = None) -> None:
        super().__init__(message)
        self.traceback_path = traceback_path


class DeviceMemoryError(TargetError):
    """The device has no room for what was to run of the target."""


class StorageError(ActuneError):
    """The database can't be opened, read or written."""

    exit_code = 5


def shorten(value: object, limit: int = 80) -> str:
    """The value's repr, cut to a length that fits a message."""
    return cut(repr(value), limit)


def cut(text: str, limit: int = 80) -> str:
    """The text, cut to that many characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_error(error: BaseException, limit: int = 300) -> str:
    """Any exception in one line: its type, and its message if there is one."""
    text = cut(" ".join(str(error).split()), limit)
    return f"{type(error).__name__}: {text}".removesuffix(": ")
