"""Commands that load a target without a study: their common options, and the engine that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from actune.cli.options import (
    DEFAULT_TRIAL_TIMEOUT,
    MAX_NPROC,
    MAX_WORLD_SIZE,
    DurationType,
    device_help,
    nproc_help,
    scratch_log_folder,
    world_size_help,
)
from actune.cli.terminal import say
from actune.errors import UsageError

if TYPE_CHECKING:
    from actune.engine import LocalEngine
    from actune.records import Loaded

Command = TypeVar("Command", bound=Callable[..., Any])


def load_options(command: Command) -> Command:
    """Adds the options that `loaded_target` takes beside the target."""
    options = (
        click.option("--device", default="cpu", show_default=True, metavar="D", help=device_help),
        click.option(
            "--world-size", type=click.IntRange(1, MAX_WORLD_SIZE), default=1, show_default=True, help=world_size_help
        ),
        click.option(
            "--nproc-per-node", type=click.IntRange(1, MAX_NPROC), default=1, show_default=True, help=nproc_help
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the model and data."
        ),
        click.option(
            "--trial-timeout",
            type=DurationType(),
            default=DEFAULT_TRIAL_TIMEOUT,
            show_default=True,
            help="Cap on loading and on each request to the worker.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Session:
    """A target that is loaded.

    Attributes:
        engine: asks its worker.
        loaded: what loading taught.
        log_folder: for what the worker prints, and for tracebacks.
    """

    engine: LocalEngine
    loaded: Loaded
    log_folder: Path


@contextmanager
def loaded_target(
    command: str, *, target: str, device: str, world_size: int, nproc_per_node: int, seed: int, trial_timeout: float
) -> Iterator[Session]:
    """The target in a worker, until the block ends.

    Args:
        command: its name, for the folder of logs, which stays only if the block raises.
        target: as given.
        device: as given.
        world_size: as given.
        nproc_per_node: as given.
        seed: of the model and data.
        trial_timeout: of each request, in seconds.

    Raises:
        UsageError: the target or the device does not exist, or not as a part of so many.
        TargetError: the target's code raised, hung or died.
    """
    from actune.engine import LocalEngine
    from actune.records import LoadTarget
    from actune.target_spec import parse_target_spec

    parse_target_spec(target)
    check_processes(device, world_size, nproc_per_node)
    load = LoadTarget(target, device, seed, world_size, nproc_per_node)
    with (
        scratch_log_folder(command) as log_folder,
        LocalEngine(load, workers=1, timeout_s=trial_timeout, log_folder=log_folder) as engine,
    ):
        say(f"loading {target} on {device}")
        yield Session(engine, engine.load(), log_folder)


def check_processes(device: str, world_size: int, nproc_per_node: int) -> None:
    """Checks that the ranks asked for either all exist or are all but one imagined.

    Raises:
        UsageError: several processes are to run on a simulated device, or to be one of more ranks.
    """
    from actune.device_spec import PREFIX

    if nproc_per_node == 1:
        return
    if device.startswith(PREFIX):
        raise UsageError(
            f"--nproc-per-node {nproc_per_node} needs a real device, not '{device}': a simulated one is one rank. Say "
            f"--world-size {nproc_per_node} to have its share of the model simulated."
        )
    if world_size > 1:
        raise UsageError(
            f"--nproc-per-node {nproc_per_node} and --world-size {world_size} exclude each other: processes on this "
            "machine are all the ranks there are; --world-size is for one rank whose others don't exist."
        )
