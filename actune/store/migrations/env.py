"""Run by alembic for every command; the connection, with its transaction, comes from `actune.store.migrate`.

It configures no logging: actune's caller decides what is logged.
"""

from __future__ import annotations

from alembic import context

from actune.store.schema import VERSION_TABLE

# The connection's transaction encloses all migrations: a database has either all of them or none.
context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
