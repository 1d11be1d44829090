"""A database's URL in messages: its password is never there."""

import pytest

from actune.cli.surroundings import _check_storage
from actune.errors import StorageError
from actune.store.location import parse_location

URLS = [
    "postgresql://u:secret@host/db",
    "postgresql://u:sec@secret@host/db",
    "postgresql://u:secret@host:port/db",
    "postgresql://u@host/db?password=secret&sslpassword=secret",
    "postgresql://u:a\nsecret@host:port/db",
    "mysql+x://u:secret@[::1/db",
    "nothing://u:secret@host/db",
    "sqlite+x://u:secret@host/db",
    "://u:secret@host",
    "postgresql:///u:secret@host/db",
    "postgresql:/u:secret@host/db",
    "postgresql://u@host/db?Password=secret",
    "u:secret@host/db",
    "postgresql://u/s:secret@host/db",
    "mysql:///u:secret@host/db",
]


@pytest.mark.parametrize("url", URLS)
def test_password_is_in_no_message(url):
    try:
        said = parse_location(url).label
    except StorageError as error:
        said = str(error)
    assert "secret" not in said
    assert "secret" not in str(_check_storage(url.replace("postgresql", "nothing")))
