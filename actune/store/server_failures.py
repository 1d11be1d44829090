"""What went wrong with a PostgreSQL server, in words, and what to do about it."""

from __future__ import annotations

import re

import sqlalchemy as sa

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_STATE = {
    "25006": "lets nothing be written: this user or database is read-only (default_transaction_read_only), or the "
    "server is a standby. Name a user who may write, or the primary server, with --storage.",
    "42501": "refuses it: this user lacks a privilege ({reason}). Have it granted, or name another user with "
    "--storage.",
    "53100": "can't grow: the server's disk is full. Free some space there and run the command again; what was stored "
    "before is intact.",
    "53300": "takes no more connections ({reason}). End some, or raise the server's max_connections.",
    "55P03": "is locked by another program ({reason}). End what holds a transaction open there, and run the command "
    "again.",
    "57P01": "is being shut down. Start the server again and run the command again; what was stored before is intact.",
    "57P02": "has crashed. Start the server again and run the command again; what was stored before is intact.",
    "57P03": "is starting up or shutting down. Run the command again in a while.",
}
_LOST = (
    "is gone: the server has ended, or the connection to it broke ({reason}). Run the command again once it is there; "
    "what was stored before is intact."
)

# A refused connection has no code, only the text of the server or of libpq: English, unless lc_messages says otherwise.
_BY_TEXT = {
    r"password authentication failed|no password supplied": "refuses the login ({reason}). Check the user and the "
    "password in the URL, in PGPASSWORD or in ~/.pgpass.",
    r"no pg_hba.conf entry|(peer|ident) authentication failed": "refuses the login ({reason}). Its pg_hba.conf has to "
    "allow this user from this machine.",
    r'role ".*" does not exist': "knows no such user ({reason}). Check the user in the URL, or create it "
    "by `createuser`.",
    r'database ".*" does not exist': "is not there ({reason}). Create it by `createdb {database}`, or name "
    "another with --storage.",
    r"too many clients|too many connections|remaining connection slots": _BY_STATE["53300"],
    r"the database system is": _BY_STATE["57P03"],
    r"server closed the connection|SSL connection has|SSL SYSCALL|connection is (lost|closed)|consuming input": _LOST,
    r"connection refused|no such file or directory|(not translate|resolve) host|timeout|no route": "can't be reached "
    "({reason}). Check that the server runs, and its host and port in the URL.",
    r"invalid connection option|invalid .* value|does not support SSL|SSL negotiation": "can't be connected to "
    "({reason}). Check what the URL says after its '?', and that a PostgreSQL server listens at that port.",
}


def explain_server_error(error: BaseException | None, url: sa.URL) -> str:
    """The end of a sentence that begins with the database's name.

    Args:
        error: the driver's.
        url: of the database.
    """
    text = str(error).strip()
    reason = _reason(text)
    state = getattr(error, "sqlstate", None)
    known = _BY_STATE.get(state or "")
    if state is None:
        known = next((said for sign, said in _BY_TEXT.items() if re.search(sign, text, re.IGNORECASE)), None)
    if known is None:
        known = "reports: {reason}. Check that the server runs and that the URL's user may write there."
    return known.format(reason=reason, database=url.database)


def _reason(text: str) -> str:
    """The line that says what was wrong: of several addresses that were tried, the first one's."""
    lines = text.splitlines() or [""]
    return lines[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip().rstrip(".")
