"""Targets: the built-in ones, Hugging Face configs, and the user's own."""

from actune.targets.base import BoundTarget, Target
from actune.targets.resolve import load_target, source_fingerprint

__all__ = ["BoundTarget", "Target", "load_target", "source_fingerprint"]
