"""What a model is made of and what its layers cost, taught by the model itself."""

from actune.profiler.discovery import discover, structure_fingerprint

__all__ = ["discover", "structure_fingerprint"]
