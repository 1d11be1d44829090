"""Activation checkpointing: policies, save sets, and applying plans to models."""

from actune.ac.apply import Application, apply_plan, remove_plan
from actune.ac.foreign import own_checkpointing

__all__ = ["Application", "apply_plan", "own_checkpointing", "remove_plan"]
