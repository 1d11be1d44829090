"""Devices that can be simulated: their public figures, from data files, as values."""

from __future__ import annotations

import difflib
import importlib.resources
import math
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources.abc import Traversable
from typing import Literal, get_args

from actune import tomldoc
from actune.boundary import OutsideModel, take_schema, validate
from actune.errors import UsageError

PREFIX = "sim:"
"""What `--device` begins with for a simulated device."""

BLOCK_BYTES = 512
"""What PyTorch's allocator rounds blocks to; pages are a multiple of it."""

Kernels = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class FlopRates:
    """Peak rates of matmuls by the dtype of what they multiply, in FLOPs per second, dense.

    Attributes:
        float32: without tensor cores; float64 is given this rate too.
        tf32: float32 where torch allows TF32.
        float8: None if the device has none; then float8 runs at the rate of bfloat16.
    """

    float32: float
    tf32: float
    bfloat16: float
    float16: float
    float8: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            rate = getattr(self, field.name)
            if rate is not None:
                _check_positive(f"flops_per_s.{field.name}", rate)


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """What is known of a device from its datasheet, and how much of that is reached.

    Attributes:
        name: as in `sim:NAME`.
        full_name: for people.
        total_bytes: capacity, as the driver reports it.
        outside_bytes: what a process holds outside of the allocator: context, code of the libraries.
        bandwidth_bytes_per_s: of the device's own memory, peak.
        bandwidth_efficiency: the share of it that kernels reach.
        flops_per_s: peak rates.
        compute_efficiency: the share of them that large matmuls reach.
        launch_s: from the end of a kernel to the start of the next one.
        interconnect_bytes_per_s: to the other devices of a node, in one direction.
        devices_per_node: how many there are in one.
        network_bytes_per_s: of each device to other nodes, in one direction.
        expandable_segments: whether PyTorch's allocator is set to `expandable_segments:True`.
        small_page_bytes: what those segments grow by where requests of up to 1 MiB are served.
        large_page_bytes: what they grow by for larger requests.
        kernels: whose ops it runs where the kinds of devices differ, as in attention.
        sources: where the figures come from.
    """

    name: str
    full_name: str
    total_bytes: int
    outside_bytes: int
    bandwidth_bytes_per_s: float
    bandwidth_efficiency: float
    flops_per_s: FlopRates
    compute_efficiency: float
    launch_s: float
    interconnect_bytes_per_s: float
    devices_per_node: int
    network_bytes_per_s: float
    expandable_segments: bool
    small_page_bytes: int
    large_page_bytes: int
    kernels: Kernels
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (
            "total_bytes",
            "bandwidth_bytes_per_s",
            "launch_s",
            "interconnect_bytes_per_s",
            "devices_per_node",
            "network_bytes_per_s",
        ):
            _check_positive(name, getattr(self, name))
        for name in ("small_page_bytes", "large_page_bytes"):
            if (page_bytes := getattr(self, name)) <= 0 or page_bytes % BLOCK_BYTES:
                raise ValueError(f"{name}: {page_bytes} is no page. Expected a multiple of {BLOCK_BYTES} bytes.")
        for name in ("bandwidth_efficiency", "compute_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is no share. Expected more than 0 and at most 1.")
        if not 0 <= self.outside_bytes < self.total_bytes:
            raise ValueError(f"outside_bytes: {self.outside_bytes} is outside of 0 to {self.total_bytes}, total_bytes.")
        if self.kernels not in get_args(Kernels):
            raise ValueError(f"kernels: '{self.kernels}' is none of {', '.join(get_args(Kernels))}.")
        if not self.sources:
            raise ValueError("sources: there is none. Say where the figures come from.")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {value} is no positive number.")


class _FlopTable(OutsideModel):
    float32: float
    tf32: float
    bfloat16: float
    float16: float
    float8: float | None = None


class _DeviceFile(OutsideModel):
    full_name: str
    total_bytes: int
    outside_bytes: int
    bandwidth_bytes_per_s: float
    bandwidth_efficiency: float
    compute_efficiency: float
    launch_s: float
    interconnect_bytes_per_s: float
    devices_per_node: int
    network_bytes_per_s: float
    expandable_segments: bool
    small_page_bytes: int = 2 * 2**20
    large_page_bytes: int = 20 * 2**20
    kernels: Kernels
    sources: list[str]
    flops_per_s: _FlopTable


def device_names() -> tuple[str, ...]:
    """The devices that there are files of, in alphabetical order."""
    names = (path.name for path in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_device_spec(name: str) -> SimulatedDevice:
    """The device of that name, without `sim:`.

    Raises:
        UsageError: there is none.
    """
    names = device_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{PREFIX}{near[0]}'?" if near else ""
        raise UsageError(
            f"device '{PREFIX}{name}': there are no figures of a device '{name}'.{hint} Expected one of "
            f"{', '.join(PREFIX + known for known in names)}."
        )
    return parse_device_spec(name, (_folder() / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def parse_device_spec(name: str, text: str) -> SimulatedDevice:
    """A device from the text of its file.

    Raises:
        UsageError: the text is no TOML, or not the figures of a device.
    """
    source = f"device file '{name}'"
    data = tomldoc.read(text, source=source)
    take_schema(data, source=source)
    file = validate(_DeviceFile, data, source=source)
    values = file.model_dump() | {
        "name": name,
        "sources": tuple(file.sources),
    }
    try:
        rates = FlopRates(**file.flops_per_s.model_dump())
        return SimulatedDevice(**values | {"flops_per_s": rates})
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None


def _folder() -> Traversable:
    return importlib.resources.files("actune") / "devices"
