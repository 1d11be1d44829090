import pytest

from actune.search.study import open_optuna_storage
from actune.store import Store
from tests.postgresql import PostgresServer, database, server, server_url
from tests.search.conftest import empty_database

__all__ = ["database", "empty_database", "server", "server_url"]


@pytest.fixture(scope="session")
def template(server: PostgresServer) -> str:
    """The name of a database with actune's tables and Optuna's, which take a second to make."""
    name = server.new_database()
    with Store.open(server.url(name), create=True) as store:
        storage = open_optuna_storage(store)
        storage.remove_session()
        storage.engine.dispose()
    return name
