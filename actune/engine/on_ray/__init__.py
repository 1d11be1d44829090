"""Many machines by Ray Core: a task for each request, which starts a worker on its node."""

from actune.engine.on_ray.ray_engine import RayEngine, check_ray

__all__ = ["RayEngine", "check_ray"]
