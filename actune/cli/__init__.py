"""The command line. Nothing else knows click; commands import what they need when they run, so that help is quick."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from actune import __version__
from actune.cli.copies import backup, copy_study
from actune.cli.estimate import estimate
from actune.cli.frontier import frontier
from actune.cli.interruption import INTERRUPTED, MESSAGE
from actune.cli.measure import measure
from actune.cli.profile import profile
from actune.cli.search import resume, search
from actune.cli.studies import export, show, studies
from actune.cli.surroundings import doctor, spaces, targets
from actune.cli.terminal import say
from actune.errors import ActuneError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="actune")
def actune() -> None:
    """Finds the best activation-checkpointing plan for a PyTorch model under a memory budget, by measurement.

    Exit codes: 0 done; 1 an error of actune's own; 2 wrong usage, or something named does not exist or parse; 3 no plan
    fits the budget; 4 the target is at fault; 5 the storage is at fault; 130 interrupted, with everything stored.
    """


_RUN = (search, resume, measure, estimate, frontier, profile)
_STORED = (studies, show, export, copy_study, backup)
for command in (*_RUN, *_STORED, targets, spaces, doctor):
    actune.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line: the exit code. Errors are one message on stderr, never a traceback."""
    try:
        code = actune.main(args=arguments, prog_name="actune", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ActuneError as error:
        say(f"actune: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say(MESSAGE)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone, as in `actune show … | head`, which click and rich make a SystemExit of.
        # Keep the interpreter from complaining too.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _internal_error(error)
        say("actune: can't write: the disk or your quota is full. Free some space and run it again.")
        return 1
    except Exception as error:
        return _internal_error(error)


def _internal_error(error: Exception) -> int:
    path = _keep_traceback()
    say(
        f"actune: internal error: {type(error).__name__}: {error}. This is a bug in actune; please report it with "
        f"{path}."
    )
    return 1


def _keep_traceback() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="actune-error-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return Path(file.name)
