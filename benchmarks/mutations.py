"""Valid texts, values and databases made bad in many ways, by a random generator that the caller seeds."""

import json
import re
import sqlite3
from contextlib import closing

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "-1",
    "1e999",
    "nan",
    "-inf",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1" + ":1" * 2000,
    "0." + "0" * 400 + "1",
    "*a" * 40,
    "*" * 500,
    "layers.0-999999999999",
    "layers.999999-0",
    "a." * 3000,
    "../../../etc/passwd",
    "/dev/zero",
    "~/x",
    "\x1b]0;title\x07\x1b[2J",
    "\x9b2J\r\b\x7f",
    "\ud800",
    "\u202egnp.exe",
    "\u2028",
    "é𝔘漢字",
    "'" * 3,
    '"' * 3 + "\\",
    '"""\nimport os\n"""',
    "{0.__class__}",
    "{mark}{x}",
    "%s%n%(a)s",
    "$(touch ran)",
    "`touch ran`",
    "$\\frac{$",
    "[bold]:cat:[/bold]",
    "; DROP TABLE actune_studies; --",
    "!!python/object/apply:os.system [touch ran]",
    "&a [*a, *a]",
    "<<: *a",
    "[" * 3000,
    "{a: " * 2000,
    "[[rule]]\n" * 500,
    "true",
    "null",
    "~",
    "#",
    "A" * 20_000,
)
ODD_VALUES = (
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    0.0,
    -0.5,
    1e308,
    1e-308,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
)
FORMS_OF_TOKENS = re.compile(r"[\w.]+|\S")


def mutated_text(rng, text):
    """The text with one to three changes: parts cut out, doubled, moved, exchanged, or something odd put in."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice((1, 1, 3, 10, 100)))
        match rng.randrange(8):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:end] + text[start:end] * rng.choice((1, 2, 50)) + text[end:]
            case 2:
                text = text[:start] + rng.choice(ODD_TEXTS) + text[end:]
            case 3:
                text = text[:start]
            case 4:
                text = text[:start] + chr(rng.choice((rng.randrange(128), rng.randrange(0x250), 0xFEFF))) + text[start:]
            case 5:
                tokens = list(FORMS_OF_TOKENS.finditer(text))
                if tokens:
                    token = rng.choice(tokens)
                    text = text[: token.start()] + rng.choice(ODD_TEXTS) + text[token.end() :]
            case 6:
                lines = text.splitlines(keepends=True)
                rng.shuffle(lines)
                text = "".join(lines)
            case _:
                tokens = list(FORMS_OF_TOKENS.finditer(text))
                if len(tokens) > 1:
                    one, other = rng.choice(tokens), rng.choice(tokens)
                    text = text[: one.start()] + other[0] + text[one.end() :]
    return text


def odd_value(rng):
    """A value of any type that a document may have."""
    return rng.choice(ODD_TEXTS) if rng.random() < 0.5 else rng.choice(ODD_VALUES)


def mutated_value(rng, value):
    """The document with one of its values exchanged, deleted, doubled or nested."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {(rng.choice(ODD_TEXTS) if k == key else k): v for k, v in value.items()}
            case 2:
                return value | {rng.choice(ODD_TEXTS): odd_value(rng)}
            case _:
                return value | {key: mutated_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value + [value[place]] * rng.choice((1, 2000))
            case _:
                return [*value[:place], mutated_value(rng, value[place]), *value[place + 1 :]]
    match rng.randrange(6):
        case 0:
            return [value]
        case 1:
            return {"a": value}
        case 2 if isinstance(value, str):
            return mutated_text(rng, value)
        case _:
            return odd_value(rng)


def mutated_json(rng, line):
    """A line of JSON, changed as a text or as a value."""
    if rng.random() < 0.3:
        return mutated_text(rng, line)
    value = json.loads(line)
    for _ in range(rng.choice((1, 1, 2))):
        value = mutated_value(rng, value)
    return json.dumps(value)


def columns_of(path):
    """Every (table, column) of actune's tables in a SQLite database."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [
            (table, row[1])
            for table in sorted(tables)
            if table.startswith("actune_")
            for row in connection.execute(f"PRAGMA table_info({table})")
        ]


def alter_database(rng, path, columns):
    """Puts something odd into one value of the database, or deletes a row; what the database itself refuses is left."""
    table, column = rng.choice(columns)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
        if not rows:
            return f"{table} is empty"
        rowid, before = rng.choice(rows)
        if rng.random() < 0.05:
            connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
            return f"{table}: row deleted"
        try:
            value = _odd_sql_value(rng, before)
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (value, rowid))
        except (sqlite3.Error, OverflowError, UnicodeEncodeError):
            return f"{table}.{column}: refused"
        return f"{table}.{column}: {value!r:.200}"


def _odd_sql_value(rng, before):
    if isinstance(before, str) and before[:1] in "{[" and rng.random() < 0.8:
        return mutated_json(rng, before)
    if isinstance(before, str) and rng.random() < 0.4:
        return mutated_text(rng, before)
    return rng.choice(
        (None, 0, -1, 2**62, 1.5, -0.0, float("inf"), 1e300, "", "abc", "12", b"\xff\x00", b"{}", rng.choice(ODD_TEXTS))
    )
