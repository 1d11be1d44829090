"""FQN patterns of rules: `layers.3`, `layers.0-11`, `decoder.*`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from actune.errors import PlanError

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
_COMPONENT = re.compile(r"[\w*-]+")  # a ModuleDict's keys may have hyphens


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """A pattern over FQNs of layers. `N-M` as a whole component is a range, `*` is any run of characters, dots too."""

    text: str

    def __post_init__(self) -> None:
        for component in self.text.split("."):
            bounds = _RANGE.fullmatch(component)
            if bounds is not None and int(bounds[1]) > int(bounds[2]):
                raise PlanError(f"layers: '{self.text}' has the range {component}, which ends before it begins.")
            if bounds is None and _COMPONENT.fullmatch(component) is None:
                raise PlanError(
                    f"layers: '{self.text}' is not a pattern of FQNs. Expected names joined by dots, where N-M is a "
                    "range and * any run of characters, such as layers.3, layers.0-11 or decoder.*"
                )

    def covers(self, fqn: str) -> bool:
        """Whether the pattern matches this FQN."""
        return self._indices(fqn) is not None

    def select(self, layer_fqns: Sequence[str]) -> list[str]:
        """The FQNs that match, in their order.

        Raises:
            PlanError: nothing matches, or a range reaches outside of what there is.
        """
        matches = {fqn: indices for fqn in layer_fqns if (indices := self._indices(fqn)) is not None}
        if not matches:
            raise PlanError(f"layers: '{self.text}' matches no layer. The model has: {compress_fqns_text(layer_fqns)}.")
        for position, bounds in enumerate(_compiled(self.text)[1]):
            missing = set(bounds) - {indices[position] for indices in matches.values()}
            if missing:
                raise PlanError(
                    f"layers: the range {bounds[0]}-{bounds[1]} of '{self.text}' reaches outside the model: there is "
                    f"no layer {max(missing)}. The model has: {compress_fqns_text(layer_fqns)}."
                )
        return list(matches)

    def _indices(self, fqn: str) -> list[int] | None:
        """The numbers that stand where the pattern has ranges, or None if the FQN does not match."""
        expression, ranges = _compiled(self.text)
        match = expression.fullmatch(fqn)
        if match is None:
            return None
        indices = [int(group) for group in match.groups()]
        within = all(low <= index <= high for (low, high), index in zip(ranges, indices, strict=True))
        return indices if within else None


@lru_cache(maxsize=4096)  # a search resolves thousands of plans, over all layers each
def _compiled(text: str) -> tuple[re.Pattern[str], tuple[tuple[int, int], ...]]:
    """A pattern as an expression with a group for each range, and the ranges."""
    components = text.split(".")
    expression = r"\.".join(
        r"(\d+)" if _RANGE.fullmatch(component) else re.escape(component).replace(r"\*", ".*")
        for component in components
    )
    found = (_RANGE.fullmatch(component) for component in components)
    return re.compile(expression), tuple((int(bounds[1]), int(bounds[2])) for bounds in found if bounds is not None)


def compress_fqns(layer_fqns: Iterable[str]) -> tuple[str, ...]:
    """The shortest list of `N-M` patterns for FQNs that end in a number; others stay as they are. Keeps the order."""

    def stem_and_offset(numbered: tuple[int, str]) -> tuple[str, int | None]:
        position, fqn = numbered
        stem, _, last = fqn.rpartition(".")
        # In a run of consecutive numbers, number minus position is constant. No range gives `007` back.
        is_index = last.isdecimal() and str(int(last)) == last
        return (stem, int(last) - position) if is_index else (fqn, None)

    patterns = []
    for (stem, offset), run in groupby(enumerate(layer_fqns), key=stem_and_offset):
        fqns = [fqn for _, fqn in run]
        if len(fqns) == 1 or offset is None:
            patterns.extend(fqns)
        else:
            first, last = fqns[0].rpartition(".")[2], fqns[-1].rpartition(".")[2]
            patterns.append(f"{stem}.{first}-{last}" if stem else f"{first}-{last}")
    return tuple(patterns)


def compress_fqns_text(layer_fqns: Iterable[str]) -> str:
    """The FQNs for a message, in short."""
    return ", ".join(compress_fqns(layer_fqns)) or "no layers"
