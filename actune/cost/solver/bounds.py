"""Lower bounds on the time of the first layers under a budget, from prices on what they keep.

For a price μ ≥ 0 per byte, φ_i(μ) is a lower bound on (time of the layers 1 to i) + μ·K_i over all choices that stay
within the budget so far: the Lagrangian dual of the multiple-choice knapsack (Pisinger 1995; Dyer 1984 and Zemel 1984
solve its LP relaxation), layer by layer, here with a constraint between all layers and not only at the end. A cap c on
what is kept raises the bound at low prices: for any higher price μ', μ·K ≥ μ'·K − (μ' − μ)·c where K ≤ c, so

    φ(μ)  →  max over μ' ≥ μ of φ(μ') − (μ' − μ)·c.

That holds for any set of prices; with the slopes of the layers' convex hulls it is the LP relaxation itself, as far as
needs of options do not differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actune.cost.solver.menu import Bools, Floats, Ints, Menu
from actune.cost.solver.problem import MAX_SUM_BYTES

EXACT_PRICES = 12  # on each side of a price that matters: bounds are exact for what is kept in that neighbourhood
COARSE_PRICES = 12  # spread over all others
# A price this many times the mean one is worth no line of its own, and would lose bits of what it is multiplied with.
STEEP = 1e3


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Bounds for one budget.

    Attributes:
        lines_ps: φ_i at each price, for i from 0 to L.
        least_bytes: the least that K_i can be in a choice that stays within the budget up to there.
        possible: which options can be taken at all within the budget.
        bound_ps: no choice is faster.
        reduced_ps: how much at least a choice with this option is slower than `priced_ps`.
        priced_ps: a lower bound on the time of every choice, at one set of prices for all options of a layer; what
            `reduced_ps` adds to.
        slack_ps: more than the rounding of all sums above.
    """

    budget_bytes: int
    prices_ps: Floats
    lines_ps: Floats
    knots_bytes: Floats
    least_bytes: Ints
    possible: Bools
    bound_ps: float
    priced_ps: float
    reduced_ps: Floats
    slack_ps: float

    def before(self, layer: int, kept_bytes: Ints) -> Floats:
        """No choice for the layers before `layer` that keeps at most so much is faster; infinite where none exists."""
        line = len(self.prices_ps) - 1 - np.searchsorted(self.knots_bytes[layer], kept_bytes)
        bound: Floats = self.lines_ps[layer][line] - self.prices_ps[line] * kept_bytes
        bound[kept_bytes < self.least_bytes[layer]] = np.inf
        return bound


class Near:
    """Which prices mattered at the last budget: a place to start from at the next one. Changes no result."""

    def __init__(self) -> None:
        self.prices: Ints | None = None


def bounds_for(menu: Menu, budget_bytes: int, near: Near | None = None) -> Bounds | None:
    """The bounds for a budget, with prices chosen where they matter; None where no choice is within the budget."""
    possible = _possible(menu, budget_bytes)
    if possible is None:
        return None
    mask, least_bytes = possible
    usable = menu.prices_ps <= STEEP * _mean_price(menu)
    all_prices = menu.prices_ps[usable]
    if near is not None and near.prices is not None:
        matter = near.prices
    else:
        room_bytes = budget_bytes - int(menu.after_bytes[-1]) if menu.layer_count else 0
        matter = np.array([np.searchsorted(-menu.kept_at_bytes[usable], -room_bytes)])
    coarse = np.linspace(0, len(all_prices) - 1, COARSE_PRICES).astype(np.int64)
    window = np.arange(-EXACT_PRICES, EXACT_PRICES + 1)
    wanted = coarse
    while True:
        wanted = np.union1d(wanted, (matter[:, None] + window).clip(0, len(all_prices) - 1))
        lines = _Lines(menu, budget_bytes, mask, all_prices[wanted])
        multipliers = lines.multipliers()
        used = wanted[sorted(set(multipliers.used))]
        # Prices that the bound rests on, with neighbours that were left out: look again, closer.
        between = np.diff(np.concatenate(([-1], wanted, [len(all_prices)])))
        at = np.searchsorted(wanted, used)
        matter = used[(between[at] > 1) | (between[at + 1] > 1)]
        if not len(matter):
            break
    if near is not None:
        near.prices = used if len(used) else None
    return lines.bounds(multipliers, least_bytes)


def _mean_price(menu: Menu) -> float:
    saved_ps = np.ptp(menu.time_ps, axis=1).sum()
    kept_bytes = np.ptp(menu.kept_bytes, axis=1).sum()
    return float(saved_ps / kept_bytes) if kept_bytes else 0.0


def _possible(menu: Menu, budget_bytes: int) -> tuple[Bools, Ints] | None:
    """Options that some choice within the budget could take, judged from the least kept before and what comes after."""
    least = [0]
    after = menu.after_bytes.tolist()
    for options, after_bytes in zip(menu.rows, after, strict=True):
        before = least[-1]
        kept = min((kept for kept, need in options if before + need <= budget_bytes), default=None)
        if kept is None or before + kept + after_bytes > budget_bytes:
            return None
        least.append(before + kept)
    most = 2 * MAX_SUM_BYTES  # what may be kept up to here for the rest to be possible
    most_after = []
    for options, after_bytes in zip(reversed(menu.rows), reversed(after), strict=True):
        most = min(most, budget_bytes - after_bytes)
        most_after.append(most)
        most = max(min(budget_bytes - need, most - kept) for kept, need in options)
    least_bytes = np.array(least, np.int64)
    before_bytes = np.minimum(budget_bytes - menu.need_bytes, np.array(most_after[::-1])[:, None] - menu.kept_bytes)
    mask = menu.valid & (before_bytes >= least_bytes[:-1, None])
    return (mask, least_bytes) if mask.any(axis=1).all() else None


@dataclass(frozen=True, slots=True, eq=False)
class _Multipliers:
    """One price for each constraint of each layer, and which of the prices they rest on."""

    after: Floats
    need: Floats
    used: list[int]


class _Lines:
    """φ at some prices, and the multipliers that the bound on the whole rests on."""

    def __init__(self, menu: Menu, budget_bytes: int, possible: Bools, prices: Floats) -> None:
        self.menu, self.budget_bytes, self.possible, self.prices = menu, budget_bytes, possible, prices
        count = menu.layer_count
        self.lines = np.zeros((count + 1, len(prices)))
        self.raised = np.zeros((count, len(prices)), np.bool_)  # where a cap of the layer raised the bound
        # Entries are (layer, option, price).
        self.options = menu.time_ps[:, :, None] + menu.kept_bytes[:, :, None] * prices
        self.options[~possible] = np.inf
        most = np.cumsum(np.where(possible, menu.kept_bytes, menu.kept_bytes.min(axis=1, keepdims=True)).max(axis=1))
        need_caps = budget_bytes - np.where(possible, menu.need_bytes, menu.need_bytes.min(axis=1, keepdims=True))
        cut_by_need = np.concatenate(([0], most[:-1])) > need_caps.min(axis=1) if count else np.zeros(0, np.bool_)
        cut_after = most > budget_bytes - menu.after_bytes
        for row in range(count):
            before = self.lines[row]
            lines = (before + self.options[row]).min(axis=0)
            uncut = lines
            if cut_by_need[row]:
                lines = (self._capped(before, budget_bytes - menu.need_bytes[row][:, None]) + self.options[row]).min(
                    axis=0
                )
            if cut_after[row]:
                lines = self._capped(lines, budget_bytes - menu.after_bytes[row])
            self.raised[row] = lines > uncut
            self.lines[row + 1] = lines

    def _capped(self, lines: Floats, cap_bytes: Ints | int) -> Floats:
        offsets = self.prices * cap_bytes
        return np.maximum.accumulate((lines - offsets)[..., ::-1], axis=-1)[..., ::-1] + offsets

    def multipliers(self) -> _Multipliers:
        """From the last layer back: which cap made the price what it is.

        Read off φ, so the prices are as good as those of the LP; valid as multipliers whatever they are.
        """
        menu, prices = self.menu, self.prices
        after, need = np.zeros(menu.layer_count), np.zeros(menu.layer_count)
        price, used, row = 0, [], menu.layer_count
        while len(rows := np.flatnonzero(self.raised[:row, price])):
            row = int(rows[-1])
            caps = self.budget_bytes - menu.need_bytes[row][:, None]
            by_option = self._capped(self.lines[row], caps) + self.options[row]
            raised = price + int(
                np.argmax((by_option.min(axis=0) - prices * (self.budget_bytes - menu.after_bytes[row]))[price:])
            )
            after[row] = prices[raised] - prices[price]
            cap = caps[int(np.argmin(by_option[:, raised])), 0]
            price = raised + int(np.argmax((self.lines[row] - prices * cap)[raised:]))
            need[row] = prices[price] - prices[raised]
            used += [raised, price]
        return _Multipliers(after, need, used)

    def bounds(self, multipliers: _Multipliers, least_bytes: Ints) -> Bounds:
        menu, prices = self.menu, self.prices
        # What a byte kept by layer j costs: it counts in the caps after j, and in the needs of the layers behind.
        kept_price = np.cumsum((multipliers.after + multipliers.need)[::-1])[::-1] - multipliers.need
        costs = menu.time_ps + kept_price[:, None] * menu.kept_bytes + multipliers.need[:, None] * menu.need_bytes
        costs[~self.possible] = np.inf
        lowest = costs.min(axis=1) if menu.layer_count else np.zeros(0)
        caps = self.budget_bytes - menu.after_bytes
        priced_ps = float(lowest.sum() - multipliers.after @ caps - multipliers.need.sum() * self.budget_bytes)
        magnitude_ps = (
            float(menu.time_ps.max(axis=1).sum())
            + float(prices[-1])
            * (
                abs(self.budget_bytes)
                + float(np.abs(menu.kept_bytes).max(axis=1).sum())
                + float(np.abs(menu.need_bytes).max(initial=0))
            )
            if menu.layer_count
            else 0.0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            knots = (np.diff(self.lines, axis=1) / np.diff(prices))[:, ::-1]
        return Bounds(
            self.budget_bytes,
            prices,
            self.lines,
            np.maximum.accumulate(knots, axis=1),
            least_bytes,
            self.possible,
            max(priced_ps, float(self.lines[-1, 0])),
            priced_ps,
            costs - lowest[:, None],
            1.0 + 8 * np.finfo(float).eps * (menu.layer_count + 1) * magnitude_ps,
        )
