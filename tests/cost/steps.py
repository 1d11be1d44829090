"""Steps made up by a formula, for tests of what is composed of them: no model, no allocator."""

from __future__ import annotations

from collections.abc import Mapping

from actune.errors import DeviceMemoryError, PlanError
from actune.plan import NO_AC, Plan, Treatment, parse_plan
from actune.records import LayerClass, ModelStructure
from actune.step_profile import LayerCall, LayerTensor, PlanProfiled, ProfilePlan, Slot, StepProfile, TensorFreed

INPUT_BYTES = 10
STATE_BYTES = 50
FULL, SAC = Treatment("full"), Treatment("selective")
KEPT_BYTES = {NO_AC: 300, FULL: 10, SAC: 120}
TRANSIENT_BYTES = {NO_AC: 5, FULL: 95, SAC: 70}
TIME_S = {NO_AC: 1.0, FULL: 1.5, SAC: 1.25}


def structure_of(*classes: int) -> ModelStructure:
    """Classes of so many layers each, one after the other."""
    fqns = [f"layers.{number}" for number in range(sum(classes))]
    made, start = [], 0
    for number, count in enumerate(classes):
        made.append(LayerClass(f"Block#{number}", tuple(fqns[start : start + count]), (), (), ()))
        start += count
    return ModelStructure(tuple(fqns), tuple(made))


class Steps:
    """Runs profiles by the formula, and remembers what it was asked for.

    Each layer holds its input under every treatment but none, and frees it in its backward; where it does not, the
    model's own code frees it right after the call. Layer i leaves i bytes of gradients behind.
    """

    def __init__(
        self, structure: ModelStructure, *, capacity_bytes: int = 10**9, odd: Mapping[str, int] | None = None
    ) -> None:
        """Args: odd: bytes that the backward of a layer leaves behind in addition, whatever its treatment."""
        self.structure = structure
        self.capacity_bytes = capacity_bytes
        self.odd = odd or {}
        self.data_bytes = 0
        self.misfits: set[Treatment] = set()
        self.plans: list[dict[str, Treatment]] = []

    def __call__(self, request: ProfilePlan) -> PlanProfiled:
        treatments = parse_plan(request.plan_toml).resolve(self.structure.layer_fqns)
        if self.misfits & set(treatments.values()):
            raise PlanError("it does not fit")
        steady = self.step(treatments, step=int(request.with_optimizer))
        if steady.peak_bytes > self.capacity_bytes:
            raise DeviceMemoryError("out of memory")
        self.plans.append(treatments)
        return PlanProfiled(self.step(treatments, step=0) if request.with_optimizer else None, steady)

    def step(self, treatments: Mapping[str, Treatment], *, step: int) -> StepProfile:
        """The step of that number under a plan."""
        slots, backward, calls, freed = [Slot("outer", "", -1, INPUT_BYTES, 2 * INPUT_BYTES, 0.5)], [], [], []
        count = len(treatments)
        for call, (fqn, treatment) in enumerate(treatments.items()):
            kept = KEPT_BYTES[treatment] + step * call * self.data_bytes
            is_held = treatment != NO_AC
            calls.append(LayerCall(call, (LayerTensor(call, INPUT_BYTES, is_held),)))
            slots.append(Slot("forward", fqn, call, kept + INPUT_BYTES, kept + INPUT_BYTES + 20, TIME_S[treatment]))
            slots.append(Slot("outer", "", -1, 0 if is_held else -INPUT_BYTES, 0, 0.0))
            if not is_held:
                freed.append(TensorFreed(call, 2 + 2 * call))
            # The gradient of the output is freed and that of the input made: of one size.
            left = call + self.odd.get(fqn, 0)
            delta = -kept + left - (INPUT_BYTES if is_held else 0)
            backward.insert(0, Slot("backward", fqn, call, delta, TRANSIENT_BYTES[treatment] + left, 0.0))
            if is_held:
                freed.append(TensorFreed(call, 1 + 2 * count + 1 + (count - 1 - call)))
        slots.append(Slot("outer", "", -1, 3, 60, 0.25))
        live_bytes = 1000 + step * STATE_BYTES
        optimizer = Slot("optimizer", "", -1, 0 if step else STATE_BYTES, 7 if step else STATE_BYTES + 7, 0.1)
        return StepProfile(live_bytes, (*slots, *backward, optimizer), tuple(calls), tuple(freed))

    def peak_bytes(self, plan: Plan) -> int:
        """The peak that the formula gives, over the optimizer's first step and a later one."""
        treatments = plan.resolve(self.structure.layer_fqns)
        return max(self.step(treatments, step=step).peak_bytes for step in (0, 1))
