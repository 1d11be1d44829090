"""FQN patterns of rules: `layers.3`, `layers.0-11`, `decoder.*`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from actune.errors import PlanError, shorten

MAX_PATTERN_LENGTH = 1000

_RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})")
_COMPONENT = re.compile(r"[\w*-]+")  # a ModuleDict's keys may have hyphens
_NUMBER = r"([0-9]{1,18})"
_MAX_DIGITS = 18  # of a layer's number: Python's own have no end, and take their time


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """A pattern over FQNs of layers. `N-M` as a whole component is a range, `*` is any run of characters, dots too."""

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MAX_PATTERN_LENGTH:
            raise PlanError(
                f"layers: {shorten(self.text)} has {len(self.text)} characters. Expected at most {MAX_PATTERN_LENGTH}."
            )
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
        for position, bounds in enumerate(bounds for run in _compiled(self.text) for bounds in run.ranges):
            missing = set(bounds) - {indices[position] for indices in matches.values()}
            if missing:
                raise PlanError(
                    f"layers: the range {bounds[0]}-{bounds[1]} of '{self.text}' reaches outside the model: there is "
                    f"no layer {max(missing)}. The model has: {compress_fqns_text(layer_fqns)}."
                )
        return list(matches)

    def _indices(self, fqn: str) -> list[int] | None:
        """The numbers that stand where the pattern has ranges, or None if the FQN does not match."""
        runs = _compiled(self.text)
        if len(runs) == 1:
            return runs[0].take(runs[0].expression.fullmatch(fqn))
        indices: list[int] = []
        end = 0
        for number, run in enumerate(runs):
            match = run.expression.match(fqn) if number == 0 else run.expression.search(fqn, end)
            # What stands between two stars is taken where it first fits, which leaves the most to what comes after it:
            # so nothing is tried twice, and any number of stars takes no longer.
            while (taken := run.take(match)) is None and match is not None and number > 0:
                match = run.expression.search(fqn, match.start() + 1)
            if match is None or taken is None:
                return None
            indices += taken
            end = match.end()
        return indices


@dataclass(frozen=True, slots=True)
class _Run:
    """What stands between two stars of a pattern: an expression with a group for each range, and the ranges."""

    expression: re.Pattern[str]
    ranges: tuple[tuple[int, int], ...]

    def take(self, match: re.Match[str] | None) -> list[int] | None:
        """The numbers in the place of the ranges, if they are within them."""
        if match is None:
            return None
        indices = [int(group) for group in match.groups()]
        within = all(low <= index <= high for (low, high), index in zip(self.ranges, indices, strict=True))
        return indices if within else None


@lru_cache(maxsize=4096)  # a search resolves thousands of plans, over all layers each
def _compiled(text: str) -> tuple[_Run, ...]:
    """A pattern's runs, the last of which ends where the FQN does."""
    expressions, ranges = [""], [list[tuple[int, int]]()]
    for number, component in enumerate(text.split(".")):
        expressions[-1] += r"\." if number else ""
        bounds = _RANGE.fullmatch(component)
        if bounds is not None:
            expressions[-1] += _NUMBER
            ranges[-1].append((int(bounds[1]), int(bounds[2])))
            continue
        first, *others = re.split(r"\*+", component)
        expressions[-1] += re.escape(first)
        expressions += [re.escape(other) for other in others]
        ranges += [[] for _ in others]
    expressions[-1] += r"\Z"
    return tuple(_Run(re.compile(run), tuple(found)) for run, found in zip(expressions, ranges, strict=True))


def compress_fqns(layer_fqns: Iterable[str]) -> tuple[str, ...]:
    """The shortest list of `N-M` patterns for FQNs that end in a number; others stay as they are. Keeps the order."""

    def stem_and_offset(numbered: tuple[int, str]) -> tuple[str, int | None]:
        position, fqn = numbered
        stem, _, last = fqn.rpartition(".")
        # In a run of consecutive numbers, number minus position is constant. No range gives `007` back.
        is_index = last.isdecimal() and len(last) <= _MAX_DIGITS and str(int(last)) == last
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
