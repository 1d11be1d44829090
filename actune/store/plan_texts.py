"""The texts of plans, each stored once under its hash, whoever ran or predicted it."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from actune.errors import PlanError, shorten
from actune.plan import Plan, parse_plan
from actune.store.schema import plans, unreadable


def read_plan(connection: sa.Connection, plan_hash: str) -> str | None:
    """A plan's text; None if there is no plan of that hash."""
    toml = connection.execute(sa.select(plans.c.toml).where(plans.c.plan_hash == plan_hash)).scalar()
    if toml is not None:
        stored_plan(toml)
    return toml


def stored_plan(toml: str) -> Plan:
    """The plan of a text that the store gave.

    Raises:
        StorageError: it is no plan: another program has written it.
    """
    try:
        if not isinstance(toml, str):
            raise ValueError(f"{shorten(toml)} is no text")
        return parse_plan(toml, source="it")
    except (PlanError, ValueError) as error:
        raise unreadable("plan", ValueError(str(error))) from None


def keep_plans(connection: sa.Connection, tomls: Mapping[str, str]) -> None:
    """Stores the texts of plans, by hash, that are not stored yet.

    Raises:
        ValueError: a plan of the same hash is stored with another text.
    """
    query = sa.select(plans.c.plan_hash, plans.c.toml).where(plans.c.plan_hash.in_(tomls))
    known = {row.plan_hash: row.toml for row in connection.execute(query)}
    for plan_hash, toml in known.items():
        if toml != tomls[plan_hash]:
            raise ValueError(
                f"plan {plan_hash} is stored with another text; the store takes plans as "
                f"`dump_plan(plan, with_provenance=False)` writes them"
            )
    unknown = [{"plan_hash": plan_hash, "toml": toml} for plan_hash, toml in tomls.items() if plan_hash not in known]
    if unknown:
        connection.execute(plans.insert(), unknown)
