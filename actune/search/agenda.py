"""What a study measures next, and when there is nothing left to find.

With advice: the first preset, which becomes the reference; the predicted optimum; then plan after plan that may be the
best, until none is believed to be better by more than the tolerance. The other presets come last: they are there to be
compared with, and teach little about plans near the optimum. A sampler that learns from parameters gets all given plans
first, so that it has something to learn from.
"""

from __future__ import annotations

from collections.abc import Callable

from actune.plan import Plan
from actune.search.advice import Advice, Bound
from actune.search.foresight import GREEDY, Foresight
from actune.search.latent import LOWEST_SHARE, LatentSpace
from actune.search.ledger import Ledger
from actune.search.proposers import PER_LAYER, THOMPSON, AdvisedPlans, PlanSource
from actune.search.space import ModelSpace
from actune.search.study import PlanStudy
from actune.study_records import StopReason, StudyRecord

FIRST_SHARES = (1.0, 0.98, 0.95, 0.9)
"""Shares of the budget whose predicted optima a sampler learns from first."""
FRUITLESS_IN_A_ROW = 20
UNSEEN_TRIES = 500

IsSeen = Callable[[Plan], bool]


class Agenda:
    """The order of a study's plans.

    Attributes:
        sampler: that Optuna uses.
        source: of plans, for Optuna's trials.
    """

    def __init__(self, record: StudyRecord, space: ModelSpace, foresight: Foresight, ledger: Ledger) -> None:
        assert record.budgets_bytes, "budgets are known before the first trial"
        self._budgets_bytes = record.budgets_bytes
        self._tolerance = record.settings.tolerance
        self._space = space
        self._foresight = foresight
        self._ledger = ledger
        self._advised: Plan | None = None
        self._bounds: dict[int, Bound | None] = {}
        self._bounds_are_of = -1
        self.fruitless_in_a_row = 0
        self.sampler = record.settings.sampler
        self._latent: LatentSpace | None = None
        self.source: PlanSource = space
        if self.sampler == PER_LAYER:
            self.source = space.per_layer()
        elif foresight.advice is None:
            self.sampler = "tpe" if self.sampler == THOMPSON else self.sampler
        elif self.sampler == THOMPSON:
            self.source = AdvisedPlans(lambda number: self._take_advised())
        else:
            smallest_share = min(self._budgets_bytes) / max(self._budgets_bytes)
            self._latent = self.source = LatentSpace(
                foresight.stacks,
                record.target.structure.layer_fqns,
                foresight.margins,
                budget_bytes=max(self._budgets_bytes),
                lowest_share=LOWEST_SHARE * smallest_share,
            )

    def begin(self, study: PlanStudy) -> None:
        """Puts into the study's queue what comes first."""
        self._study = study
        presets = list(self._space.presets)
        for name in presets[:1]:
            study.queue_preset(name)
        if self._latent is not None:  # before the same plans without parameters, from which a sampler learns nothing
            for share in FIRST_SHARES:
                values = self._latent.at_share(share)
                study.queue_plan(self._latent.decode(values), values=values)
        for plan in self._foresight.first if self.sampler != PER_LAYER else ():
            study.queue_plan(plan)
        for plan in self._space.memory_budget_plans() if self._is_advised else ():
            study.queue_plan(plan)  # the compiler decides what they keep, and no sum of layers tells
        if not self._is_advised:
            self._queue_presets()

    def prepare(self, is_seen: IsSeen, *, trials_left: int) -> StopReason | None:
        """Sees to it that the study has a plan to propose; says why if there is none left.

        Args:
            is_seen: whether a plan needs no trial: it was measured, is being measured, or is predicted not to fit.
            trials_left: how many more may start.
        """
        if self._study.has_queued():
            return None
        unseen_presets = [name for name in self._waiting_presets() if not is_seen(self._preset(name))]
        if len(unseen_presets) >= trials_left:
            self._queue_presets()
            return None if self._study.has_queued() else StopReason.EXHAUSTED
        reason = self._end(is_seen)
        if reason is not None and self._waiting_presets():
            self._queue_presets()
            return None
        return reason

    def bound(self, budget_bytes: int) -> Bound | None:
        """What can still be found within a budget, by all trials so far; None where nothing is predicted."""
        advice, reference = self._ledger.advice, self._ledger.reference
        if advice is None or reference is None:
            return None
        if self._bounds_are_of != self._ledger.lessons:
            self._bounds, self._bounds_are_of = {}, self._ledger.lessons
        if budget_bytes not in self._bounds:
            self._bounds[budget_bytes] = advice.bound(budget_bytes, self._ledger.best(budget_bytes), reference)
        return self._bounds[budget_bytes]

    def _end(self, is_seen: IsSeen) -> StopReason | None:
        open_budgets = [budget_bytes for budget_bytes in self._budgets_bytes if self._is_open(budget_bytes)]
        if not open_budgets:
            is_found = any(self._ledger.best(budget_bytes) is not None for budget_bytes in self._budgets_bytes)
            return StopReason.TOLERANCE if is_found else StopReason.EXHAUSTED
        advice = self._ledger.advice if self._is_advised else None
        if advice is not None and self._advise(advice, open_budgets, is_seen):
            return None
        if advice is not None and self._tolerance > 0:
            return StopReason.EXHAUSTED
        # Asked to go on for as long as there are trials: then any plan will do.
        if self._is_advised or self.fruitless_in_a_row >= FRUITLESS_IN_A_ROW:
            self.fruitless_in_a_row = 0
            return None if self._study.enqueue_unseen(is_seen, tries=UNSEEN_TRIES) else StopReason.EXHAUSTED
        return None

    def _is_open(self, budget_bytes: int) -> bool:
        """Whether a better plan than the best so far may be found within a budget."""
        best, advice = self._ledger.best(budget_bytes), self._ledger.advice
        if advice is None:
            return True
        if best is None:
            return self._foresight.may_fit(budget_bytes)
        if self._tolerance == 0:
            return True
        number = self._ledger.lessons
        advice.explore(budget_bytes, number)
        # The pool is quick to look through. What it does not have is only looked for once it has nothing more to offer.
        if advice.pooled_gain(budget_bytes, best, number) > self._tolerance:
            return True
        bound = self.bound(budget_bytes)
        return bound is None or bound.possible_gain > self._tolerance

    def _advise(self, advice: Advice, open_budgets: list[int], is_seen: IsSeen) -> bool:
        """Chooses the next plan, for one budget after the other."""
        number = self._ledger.lessons
        for offset in range(len(open_budgets)):
            budget_bytes = open_budgets[(number + offset) % len(open_budgets)]
            best = self._ledger.best(budget_bytes)
            for thoroughly in (False, True):
                advice.explore(budget_bytes, number, thoroughly=thoroughly)
                plan = advice.proposal(budget_bytes, best, number, is_seen)
                if plan is not None:
                    self._advised = plan
                    return True
        return False

    def _take_advised(self) -> Plan:
        plan, self._advised = self._advised, None
        assert plan is not None, "a plan is chosen before one is asked for"
        return plan

    @property
    def _is_advised(self) -> bool:
        return isinstance(self.source, AdvisedPlans)

    def _waiting_presets(self) -> list[str]:
        names = [*self._space.presets, *([GREEDY] if self._foresight.greedy is not None else [])]
        return [name for name in names if not self._study.has_preset(name)]

    def _preset(self, name: str) -> Plan:
        if name == GREEDY:
            assert self._foresight.greedy is not None
            return self._foresight.greedy
        return self._space.presets[name]

    def _queue_presets(self) -> None:
        for name in self._waiting_presets():
            if name == GREEDY:
                self._study.queue_plan(self._preset(name), preset=GREEDY)
            else:
                self._study.queue_preset(name)
