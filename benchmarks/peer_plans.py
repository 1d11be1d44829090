"""What others would run within a measured peak: presets, greedy, AutoSAC, full AC on the first k, compilers' budgets.

Each is given what it asks for, and may try again until its plan's measured peak fits: what is compared is then how fast
the plans are that fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from actune.cost.derive import derived_treatments
from actune.cost.optimum import best_plan
from actune.cost.outlook import Outlook
from actune.cost.solver import solve_greedy
from actune.cost.stack import Stack
from actune.engine import Engine
from actune.errors import ActuneError, CostError, InfeasibleError, PlanError
from actune.op_trace import LayersTraced, TraceLayers
from actune.plan import CompileMode, Plan, Treatment, dump_plan
from actune.plan.presets import preset_plan
from actune.records import MeasurePlan, ModelStructure, Outcome
from actune.search.space import ModelSpace
from actune.units import format_bytes

TIGHTENINGS = 6
BISECTED = (0.4, 1.6)  # AutoSAC's own budget, over the peak that is to be kept
BISECTIONS = 7  # down to 1% of that peak


@dataclass(frozen=True)
class Peer:
    """A plan that someone else would run.

    Attributes:
        plan: None if none was found that fits.
        peak_bytes: measured; None without a plan, or if it failed.
        note: how it was found, or why it was not.
    """

    name: str
    plan: Plan | None
    peak_bytes: int | None
    note: str = ""
    is_preset: bool = False

    def fits(self, budget_bytes: int) -> bool:
        return self.peak_bytes is not None and self.peak_bytes <= budget_bytes


class Peaks:
    """Measured peaks of plans on one target, each measured once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[Plan, tuple[int | None, str]] = {}

    def of(self, plan: Plan) -> tuple[int | None, str]:
        """Bytes, and why there are none."""
        if plan not in self._known:
            try:
                measured = self._engine.measure(MeasurePlan(toml_of(plan), None, None, timed_pairs=0))
            except PlanError as error:
                self._known[plan] = None, str(error)
            else:
                ok = measured.outcome is Outcome.OK
                self._known[plan] = (measured.peak_bytes, "") if ok else (None, measured.message or measured.outcome)
        return self._known[plan]


def toml_of(plan: Plan) -> str:
    return dump_plan(plan, with_provenance=False)


def presets(names: Iterable[str], structure: ModelStructure, peaks: Peaks) -> list[Peer]:
    """Those of a space; several names may stand for one plan."""
    plans: dict[Plan, list[str]] = {}
    for name in names:
        plans.setdefault(preset_plan(name, structure), []).append(name)
    return [Peer(" = ".join(same), plan, *peaks.of(plan), is_preset=True) for plan, same in plans.items()]


def full_on_first(structure: ModelStructure, budget_bytes: int, peaks: Peaks, compile: CompileMode = "off") -> Peer:
    """Full AC on the first k layers, with the smallest k that fits."""
    name = "full on first k" + ("" if compile == "off" else f", compiled per {compile}")
    fqns = structure.layer_fqns
    for count in range(len(fqns) + 1):
        plan = Plan.from_treatments(dict.fromkeys(fqns[:count], Treatment("full")), compile=compile)
        peak_bytes, why = peaks.of(plan)
        if peak_bytes is not None and peak_bytes <= budget_bytes:
            return Peer(name, plan, peak_bytes, f"k = {count} of {len(fqns)}")
    return Peer(name, None, None, why or "no k fits")


class Solvers:
    """A space's problem on one target, with the treatments that the search itself has: its menu, derived save sets."""

    def __init__(
        self, space: ModelSpace, structure: ModelStructure, outlook: Outlook, trace: Callable[[], LayersTraced]
    ) -> None:
        """Profiles nothing yet; the outlook may be shared between spaces."""
        self._space, self._structure, self._outlook, self._trace = space, structure, outlook, trace
        self._stacks: dict[CompileMode, Stack] | None = None

    def stacks(self) -> Mapping[CompileMode, Stack]:
        """One for each compile mode that is a sum of layers.

        Raises:
            ActuneError: what was asked can't be profiled.
        """
        if self._stacks is None:
            self._stacks = {mode: self._stack(mode) for mode in self._space.compile_modes if mode != "model"}
        return self._stacks

    def _stack(self, mode: CompileMode) -> Stack:
        menus = {fqn: tuple(g.menu_under(mode).values()) for g in self._space.groups for fqn in g.layer_fqns}
        if mode == "off":
            of_class = derived_treatments(self._trace())
            for layer_class in self._structure.classes:
                for fqn in layer_class.layer_fqns:
                    menus[fqn] = tuple(dict.fromkeys((*menus[fqn], *of_class.get(layer_class.name, ()))))
        return self._outlook.stack(mode, menus)

    def greedy(self, budget_bytes: int, peaks: Peaks) -> Peer:
        """The greedy solver's plan, of all compile modes the one that is predicted to be the fastest."""
        found = []
        for stack in self.stacks().values():
            limit_bytes = stack.model.allocatable_bytes(budget_bytes)
            for attempt in range(TIGHTENINGS):
                try:
                    solution = solve_greedy(stack.problem, limit_bytes)
                except InfeasibleError:
                    break
                plan = stack.plan(solution.choice, self._structure.layer_fqns)
                peak_bytes, why = peaks.of(plan)
                if peak_bytes is None or peak_bytes <= budget_bytes:
                    tightened = f"; {attempt} × tightened" if attempt else ""
                    predicted_s = stack.predict(solution.choice).step_time_s or math.inf
                    found.append(
                        (predicted_s, Peer("greedy", plan, peak_bytes, why or f"of our cost model{tightened}"))
                    )
                    break
                limit_bytes -= peak_bytes - budget_bytes
        return min(found, key=lambda pair: pair[0], default=(0, Peer("greedy", None, None, "nothing fits")))[1]

    def predicted_room(self, budget_bytes: int, others: Iterable[Plan]) -> float | None:
        """The predicted time of the best plan over that of the best of these: below 1 there is room."""
        best_s = []
        for stack in self.stacks().values():
            try:
                best_s.append(best_plan(stack, self._structure.layer_fqns, budget_bytes).prediction.step_time_s)
            except (InfeasibleError, CostError):
                continue
        others_s = [self._outlook.predict(plan).step_time_s for plan in others]
        known_s = [time_s for time_s in others_s if time_s is not None]
        return min(best_s) / min(known_s) if best_s and known_s else None


def memory_budget(
    mode: CompileMode, shares: Sequence[float], structure: ModelStructure, budget_bytes: int, peaks: Peaks
) -> Peer:
    """The compiler's own `activation_memory_budget`: of the shares those with a peak that fits, the largest."""
    name = f"memory budget, compiled per {mode}"
    scan = []
    for share in sorted(shares, reverse=True):
        treatment = Treatment("memory_budget", memory_budget=share)
        plan = Plan.from_treatments(dict.fromkeys(structure.layer_fqns, treatment), compile=mode)
        peak_bytes, why = peaks.of(plan)
        if peak_bytes is not None and peak_bytes <= budget_bytes:
            return Peer(name, plan, peak_bytes, f"share {share}")
        scan.append(f"{share}: {why if peak_bytes is None else format_bytes(peak_bytes)}")
    return Peer(name, None, None, "none of the shares fits; " + ", ".join(scan))


class AutoSacPeer:
    """PyTorch's AutoSAC on one target, see `peer_autosac`. What it can't do on this target is why there is no plan."""

    def __init__(self, target_text: str, structure: ModelStructure, engine: Engine) -> None:
        self._target_text, self._structure, self._engine = target_text, structure, engine
        self._statistics = None
        self._why_not = ""

    def peer(self, budget_bytes: int, peaks: Peaks) -> Peer:
        """Its plan for the budget, or, where that does not fit when measured, or where it finds none, for the largest
        budget of its own whose plan's measured peak fits."""
        name = "AutoSAC"
        self._learn()
        if self._statistics is None:
            return Peer(name, None, None, f"does not run: {self._why_not}")
        plan = self._statistics.plan(budget_bytes)
        if plan is None:
            note = "infeasible at the budget itself"
        else:
            peak_bytes, why = peaks.of(plan)
            if peak_bytes is None:
                return Peer(name, plan, None, why)
            if peak_bytes <= budget_bytes:
                note = "fits at the budget itself"
            else:
                note = f"at the budget itself its plan peaks at {format_bytes(peak_bytes)}"
        low, high = BISECTED
        best = None
        peaks_bytes = []
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            plan = self._statistics.plan(int(middle * budget_bytes))
            peak_bytes = None if plan is None else peaks.of(plan)[0]
            if peak_bytes is not None:
                peaks_bytes.append(peak_bytes)
            if plan is None or (peak_bytes is not None and peak_bytes <= budget_bytes):
                low = middle  # it finds nothing within less than it thinks full AC needs
                if plan is not None:
                    best = Peer(name, plan, peak_bytes, f"{note}; asked for {middle:.0%} of it")
            else:
                high = middle
        if best is not None:
            return best
        smallest = f", the smallest peaks at {format_bytes(min(peaks_bytes))}" if peaks_bytes else ""
        return Peer(name, None, None, f"{note}; none of its plans fits{smallest}")

    def _learn(self) -> None:
        if self._statistics is not None or self._why_not:
            return
        from peer_autosac import AutoSac  # imports torch

        try:
            traced = self._engine.trace_layers(TraceLayers(toml_of(Plan()), self._structure.layer_fqns))
            self._statistics = AutoSac.of(self._target_text, traced)
        except ActuneError as error:
            self._why_not = str(error)
        except Exception as error:  # of PyTorch's own, on a model that it can't take: a row like any other
            self._why_not = f"{type(error).__name__}: {error}"
