"""Devices that are not there: steps run on fake tensors, their bytes and their time are counted."""

from actune.measure.simulated.device import SimDevice

__all__ = ["SimDevice"]
