"""What plans of a target are predicted to cost, under every compile mode: profiles what it lacks, when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from actune.cost.lessons import Run
from actune.cost.model import CostModel, Prediction
from actune.cost.profile import CostProfile, RefusedTreatmentError, UnknownTreatmentError
from actune.cost.reserve import reserved_peak
from actune.cost.stack import Menus, Stack, stack_of
from actune.cost.survey import begin_survey, extend_survey
from actune.cost.time_parts import TimePart, time_parts
from actune.errors import PlanError
from actune.plan import CompileMode, Plan, Treatment, dump_plan, plan_hash
from actune.records import ModelStructure
from actune.step_profile import ProfilePlan

TIMED_STEPS = 3


class Outlook:
    """Cost models of one target, one for each compile mode that was asked for."""

    def __init__(self, structure: ModelStructure, run: Run, *, timed_steps: int = TIMED_STEPS) -> None:
        """Profiles nothing yet.

        Args:
            structure: the target's layers.
            run: profiles a plan on the target, as `Engine.profile` does.
            timed_steps: how many steps of each profiled plan are timed.
        """
        self._structure = structure
        self._run = run
        self._timed_steps = timed_steps
        self._models: dict[CompileMode, CostModel] = {}
        self._calibrated: dict[str, Prediction] = {}
        self._composed: dict[Plan, Prediction] = {}

    @property
    def profiles(self) -> Mapping[CompileMode, CostProfile]:
        """What is known so far."""
        return {mode: model.profile for mode, model in self._models.items()}

    @property
    def steps_run(self) -> int:
        """How many steps were run to learn it."""
        calibrating = len(self._calibrated) * (2 + self._timed_steps)
        return calibrating + sum(model.profile.steps_run for model in self._models.values())

    def learn(self, compile: CompileMode, menus: Mapping[str, Sequence[Treatment]]) -> CostModel:
        """The model of a compile mode that knows the treatments of the menus at their layers.

        Raises:
            PlanError: a plan of this compile mode can't be profiled on the device.
            DeviceMemoryError: the device has no room even for full checkpointing.
            TargetError: the target raised, or its worker died.
        """
        known = self._models.get(compile)
        profile = known.profile if known else self._begin(compile)
        extended = extend_survey(profile, menus, self._run, timed_steps=self._timed_steps)
        if known is None or extended is not profile:
            self._models[compile] = CostModel(extended)
            self._composed.clear()  # what is reserved beyond the allocated bytes may be known better now
        return self._models[compile]

    def learn_plans(self, plans: Iterable[Plan]) -> None:
        """Profiles what the plans need in as few steps as it takes; raises as `learn`.

        A plan that compiles the model as one graph is profiled itself: the compiler moves work across layers, so that
        what they hold together is only roughly the sum of what each holds, by up to a fifth.
        """
        menus: dict[CompileMode, dict[str, list[Treatment]]] = {}
        for plan in plans:
            if plan.compile == "model":
                self.calibrate(plan)
                continue
            for fqn, treatment in plan.resolve(self._structure.layer_fqns).items():
                menus.setdefault(plan.compile, {}).setdefault(fqn, []).append(treatment)
        for mode, of_mode in menus.items():
            self.learn(mode, of_mode)

    def predict(self, plan: Plan) -> Prediction:
        """Peak and step time of a plan; profiles what it has not seen.

        Raises as `learn`, and:
            PlanError: a treatment of the plan does not fit a layer.
        """
        self.learn_plans([plan])
        prediction = self.known(plan)
        assert prediction is not None, "the plan was learned just now"
        if prediction.refusal is not None and not prediction.refusal.no_room:
            raise PlanError(prediction.refusal.reason)
        return prediction

    def known(self, plan: Plan) -> Prediction | None:
        """The prediction of a plan if it can be made from what was profiled so far."""
        calibrated = self._calibrated.get(plan_hash(plan))
        if calibrated is not None or plan.compile == "model":
            return calibrated
        return self.composed(plan)

    def composed(self, plan: Plan) -> Prediction | None:
        """What the layers' profiles come to, if they are known: only roughly right where the model is one graph."""
        model = self._models.get(plan.compile)
        if model is None:
            return None
        if plan not in self._composed:
            try:
                self._composed[plan] = model.predict(plan, self._structure.layer_fqns)
            except UnknownTreatmentError:
                return None
        return self._composed[plan]

    def time_parts(self, plan: Plan) -> dict[TimePart, float] | None:
        """What a plan's step time is made of; None where that is not known from what was profiled so far."""
        model = self._models.get(plan.compile)
        try:
            return None if model is None else time_parts(model, plan.resolve(self._structure.layer_fqns))
        except (UnknownTreatmentError, RefusedTreatmentError):
            return None

    def calibrate(self, plan: Plan) -> Prediction:
        """The prediction of a plan after a step of its own, to the byte: what an allocator reserves is in it.

        Raises as `learn`, and:
            PlanError: the plan does not fit the model.
        """
        key = plan_hash(plan)
        if key not in self._calibrated:
            toml = dump_plan(plan, with_provenance=False)
            profiled = self._run(ProfilePlan(toml, with_optimizer=True, timed_steps=self._timed_steps))
            steps = [step for step in (profiled.first, profiled.steady) if step is not None]
            allocated_bytes = max(step.peak_bytes for step in steps)
            reserved = reserved_peak(profiled)
            held_bytes = allocated_bytes if reserved is None else reserved.reserved_bytes
            self._calibrated[key] = Prediction(
                held_bytes + profiled.steady.outside_bytes, profiled.steady.step_time_s, allocated_bytes
            )
        return self._calibrated[key]

    def stack(self, compile: CompileMode, menus: Menus) -> Stack:
        """The problem of choosing from the menus under a compile mode. Raises as `learn`."""
        return stack_of(self.learn(compile, menus), menus)

    def _begin(self, compile: CompileMode) -> CostProfile:
        return begin_survey(self._structure, self._run, compile=compile, timed_steps=self._timed_steps)
