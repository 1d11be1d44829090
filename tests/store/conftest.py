from tests.postgresql import database, server, server_url

__all__ = ["database", "server", "server_url"]
