"""A coordinator that dies, on a PostgreSQL server, at each of the points of `tests/search/test_recovery.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from actune.store import Store
from tests.postgresql import PostgresServer
from tests.search import test_recovery as recovery
from tests.search.fakes import Machine

pytestmark = pytest.mark.faults


@pytest.fixture
def store(server: PostgresServer, template: str) -> Iterator[Store]:
    database = server.new_database(template=template)
    with Store.open(server.url(database), create=True) as store:
        yield store
    server.drop(database)


@pytest.mark.parametrize(("owner", "method", "after", "lost"), recovery.POINTS)
def test_a_search_that_died_goes_on_without_loss(
    store: Store, owner: type, method: str, after: bool, lost: int
) -> None:
    recovery.test_a_search_that_died_goes_on_without_loss(store, Machine(), owner, method, 2, after, lost)


@pytest.mark.parametrize(
    "test",
    [
        recovery.test_presets_survive_a_death_while_they_are_enqueued,
        recovery.test_a_death_while_recovering_loses_no_plan,
        recovery.test_the_reference_survives_a_death_before_it_was_recorded,
    ],
)
def test_other_deaths(store: Store, test: Callable[[Store, Machine], None]) -> None:
    test(store, Machine())
