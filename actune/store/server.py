"""Connections to a PostgreSQL server, whose transactions behave as those in a SQLite file do."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from actune.store.location import Location

WRITES = "actune_writes"  # execution option of a connection whose transactions will write

# The lower half of the key of the lock that writers take in turns; its upper half is "actu" in ASCII.
_WRITERS_KEY = (0x61637475 << 32) + 1

# Of libpq. Without them a connection whose other end lost power or its network waits for hours. What the URL says of
# them goes first.
_CONNECTION_DEFAULTS = {
    "application_name": "actune",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The same on the server's end, which keeps the locks of a dead machine until it notices: after half a minute of silence
# it asks three times in another half.
_SERVER_KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


def connection_arguments(url: sa.URL) -> dict[str, Any]:
    """What a connection is made with beside its URL."""
    defaults = {name: value for name, value in _CONNECTION_DEFAULTS.items() if name not in url.query}
    asked = url.normalized_query.get("options") or (os.environ.get("PGOPTIONS", ""),)
    return defaults | {"options": " ".join((_SERVER_KEEPALIVES, *asked)).strip()}


def create_server_engine(location: Location, *, lock_timeout_s: float) -> sa.Engine:
    """An engine for the store's transactions. Opens nothing yet."""
    # A connection that broke while no one used it is replaced before it is used.
    engine = sa.create_engine(location.url, pool_pre_ping=True, connect_args=connection_arguments(location.url))

    def begin(connection: sa.Connection) -> None:
        if not connection.get_execution_options().get(WRITES, False):
            # A record is read by several queries: they see the database as it was at the first.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return
        # One writer at a time, as with SQLite: what a transaction reads before it writes stays true. Writes are short,
        # and few beside the seconds that a trial takes.
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(1000 * lock_timeout_s)}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_KEY})")

    event.listen(engine, "begin", begin)
    return engine
