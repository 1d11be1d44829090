"""Which engine a search runs on, by its name on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from actune.engine.engine import EngineFactory
from actune.engine.local import LocalEngine
from actune.errors import UsageError


def engine_factory(engine: str, address: str | None, *, cards: Sequence[str] = ()) -> EngineFactory:
    """What makes the engine of this name.

    Args:
        engine: `local` or `ray`.
        address: of a Ray cluster; None for the one that Ray finds.
        cards: of this machine, which workers get; all visible ones if none is named.

    Raises:
        UsageError: there is no such engine, or it has no address, or no cards to name.
    """
    if engine == "ray":
        if cards:
            raise UsageError(
                f"--devices {','.join(cards)} names cards of this machine, and --engine ray takes a cluster's: Ray "
                "chooses among them. Leave --devices out."
            )
        from actune.engine.on_ray import RayEngine

        return partial(RayEngine, address=address)
    if engine != "local":
        raise UsageError(f"engine '{engine}' does not exist. There are: local, ray.")
    if address is not None:
        raise UsageError(f"--address {address} is that of a Ray cluster: give --engine ray too, or leave it out.")
    return partial(LocalEngine, cards=cards)


def check_engine(engine: str, address: str | None, device: str, *, cards: Sequence[str] = ()) -> None:
    """Checks what can be known before anything is started.

    Raises:
        UsageError: there is no such engine, it is not installed, has no address, or can't use the device or the cards.
    """
    engine_factory(engine, address, cards=cards)
    if engine == "ray":
        from actune.engine.on_ray import check_ray

        check_ray(device)
