"""Activation checkpointing: policies, save sets, and applying plans to models."""

from actune.ac.apply import Application, apply_plan, remove_plan

__all__ = ["Application", "apply_plan", "remove_plan"]
