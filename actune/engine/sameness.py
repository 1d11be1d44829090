"""Whether two workers measure the same thing, so that their numbers may stand beside each other."""

from __future__ import annotations

from dataclasses import fields

from actune.errors import TargetError, UsageError
from actune.records import Environment, Loaded


def check_same(first: Loaded, other: Loaded, *, where: str) -> None:
    """Checks that a later worker has what the first one had.

    Args:
        first: what loading taught in the first worker.
        other: what it taught in another one.
        where: what to call the other one, such as a card or a node.

    Raises:
        UsageError: it runs on another kind of device, or with other versions.
        TargetError: the target's code or sizes have changed in between.
    """
    for field in fields(Environment):
        was, found = getattr(first.environment, field.name), getattr(other.environment, field.name)
        if was != found:
            raise UsageError(
                f"{where}: {field.name} is {found!r}, and {was!r} where the first worker ran. Times and peaks of the "
                "two can't be compared: run the search on devices of one kind, with the same versions."
            )
    if other.target.fingerprint != first.target.fingerprint:
        raise TargetError(
            f"{where}: target '{other.target.spec}' is no longer what the search began with: its fingerprint is "
            f"{other.target.fingerprint}, and was {first.target.fingerprint}. Has its code been changed meanwhile? "
            "What was measured is stored; start a new study for the new code with --study."
        )
