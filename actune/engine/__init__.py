"""Engines run requests on workers and turn whatever happens to them into replies and outcomes."""

from actune.engine.cards import worker_environments
from actune.engine.engine import Engine, EngineFactory
from actune.engine.local import LocalEngine, target_error

__all__ = ["Engine", "EngineFactory", "LocalEngine", "target_error", "worker_environments"]
