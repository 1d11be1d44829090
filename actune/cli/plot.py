"""The frontier as a picture; matplotlib's home."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actune.cli.terminal import printable
from actune.errors import UsageError
from actune.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
_DPI = 150
_BYTES_PER_MIB = 2**20
_BYTES_PER_GIB = 2**30

Point = dict[str, Any]


def check_plot(path: Path) -> None:
    """Checks whether a picture can be made there, before the work for it is done.

    Raises:
        UsageError: the suffix is none that is drawn, the folder is not there, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: '{path.suffix}' is not drawn. Expected a name that ends in .png or .svg.")
    if not os.path.isdir(path.parent):
        raise UsageError(f"--plot {path}: the folder {path.parent} does not exist. Create it, or name another.")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError("--plot needs matplotlib. Install it by pip install 'actune[plot]'.") from None


def draw_frontier(
    points: Sequence[Point],
    path: Path,
    *,
    title: str,
    reference: str,
    budgets_bytes: Sequence[int],
    device_bytes: int | None,
) -> None:
    """Peak against step time: the predicted frontier, the presets, what was measured, and the budgets.

    Args:
        points: as in a document of `frontier`.
        path: ends in one of SUFFIXES.
        title: above the picture.
        reference: the plan whose step time is 1.
        budgets_bytes: a line for each.
        device_bytes: the device's capacity, a line too where plans come near it; None for none.

    Raises:
        UsageError: the file can't be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    highest_bytes = max((p[name] or 0 for p in points for name in ("predicted_peak_bytes", "peak_bytes")), default=0)
    unit, per_unit = ("GiB", _BYTES_PER_GIB) if highest_bytes >= _BYTES_PER_GIB else ("MiB", _BYTES_PER_MIB)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)  # no display is asked for
    axes = figure.add_subplot()
    _draw_predicted(axes, points, per_unit)
    _draw_measured(axes, points, per_unit)
    for number, budget_bytes in enumerate(budgets_bytes):
        axes.axvline(budget_bytes / per_unit, color="tab:red", linestyle="--", label="budget" if number == 0 else None)
    if device_bytes is not None and highest_bytes > 0.9 * device_bytes:
        axes.axvline(device_bytes / per_unit, color="gray", linestyle=":", label="the device's memory")
    axes.margins(x=0.1)  # room for the last preset's name
    axes.set(title=_plain(title), xlabel=f"peak ({unit})", ylabel=f"step time relative to {_plain(reference)}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    # The same points make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "actune"}):
        try:
            picture = io.BytesIO()
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=_DPI, metadata=metadata)
            write_whole(path, picture.getvalue())
        except (OSError, RuntimeError) as error:  # RuntimeError: links that go in a circle
            raise UsageError(f"--plot {path} can't be written: {getattr(error, 'strerror', None) or error}.") from None


def _draw_predicted(axes: Axes, points: Sequence[Point], per_unit: int) -> None:
    place = _place("predicted_peak_bytes", "predicted_relative_step_time", per_unit)
    curve = [where for p in points if p["on_frontier"] in ("predicted", "both") and (where := place(p))]
    if curve:
        axes.plot(*zip(*curve, strict=True), marker=".", color="tab:blue", label="predicted frontier")
    presets = [(p["preset"], where) for p in points if p["preset"] is not None and (where := place(p))]
    if presets:
        axes.scatter(
            *zip(*(where for _, where in presets), strict=True), color="black", zorder=3, label="presets, predicted"
        )
    at_one_place: dict[tuple[float, float], list[str]] = {}
    for name, (x, y) in presets:
        at_one_place.setdefault((round(x, 2), round(y, 3)), []).append(name)
    for where, names in at_one_place.items():
        axes.annotate(_plain(", ".join(names)), where, xytext=(5, 4), textcoords="offset points", fontsize=8)


def _draw_measured(axes: Axes, points: Sequence[Point], per_unit: int) -> None:
    place = _place("peak_bytes", "relative_step_time", per_unit)
    measured = [where for p in points if p["outcome"] == "ok" and (where := place(p))]
    if measured:
        axes.scatter(*zip(*measured, strict=True), marker="x", color="tab:orange", zorder=4, label="measured")
    frontier = [where for p in points if p["on_frontier"] in ("measured", "both") and (where := place(p))]
    if frontier:
        axes.plot(*zip(*sorted(frontier), strict=True), color="tab:orange", alpha=0.6, label="measured frontier")


def _plain(text: str) -> str:
    """A name as it is: matplotlib takes what stands between dollars for a formula."""
    return printable(text).replace("$", r"\$")


def _place(peak: str, ratio: str, per_unit: int) -> Callable[[Point], tuple[float, float] | None]:
    def place(point: Point) -> tuple[float, float] | None:
        return None if point[peak] is None or point[ratio] is None else (point[peak] / per_unit, point[ratio])

    return place
