"""The store in a PostgreSQL database."""

from __future__ import annotations

import pytest

from .contract import StoreTestCase


class TestPostgresStore(StoreTestCase):
    @pytest.fixture
    def url(self, server_url: str) -> str:
        return server_url
