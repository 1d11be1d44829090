"""Engines run requests on workers and turn whatever happens to them into replies and outcomes."""

from actune.engine.cards import worker_environments
from actune.engine.choice import check_engine, engine_factory
from actune.engine.engine import Engine, EngineFactory
from actune.engine.local import LocalEngine, target_error

__all__ = [
    "Engine",
    "EngineFactory",
    "LocalEngine",
    "check_engine",
    "engine_factory",
    "target_error",
    "worker_environments",
]
