"""Whether steps call the layers alike, which is what makes the slots of one step fit into another."""

from __future__ import annotations

from actune.errors import CostError
from actune.step_profile import StepProfile


def check_same_calls(frame: StepProfile, step: StepProfile) -> None:
    """That a step has the layers' forwards and backwards of the frame, which is what makes slots exchangeable.

    Raises:
        CostError: it has others, or the frame itself has a call with several backwards.
    """
    backward = [slot.call for slot in frame.slots if slot.kind == "backward"]
    if len(set(backward)) < len(backward):
        fqn = next(slot.layer_fqn for slot in frame.slots if slot.kind == "backward" and backward.count(slot.call) > 1)
        raise CostError(
            f"{fqn} has more than one backward for one forward, so what its treatments hold can't be told apart. "
            "Measure plans by `actune measure` instead."
        )
    expected, found = _calls_seen(frame), _calls_seen(step)
    if expected != found:
        differing = sorted({fqn for _, fqn, *_ in expected.symmetric_difference(found)})
        raise CostError(
            f"the layers are not called alike in each step: {', '.join(differing[:3])}"
            f"{' …' if len(differing) > 3 else ''}. Plans can be predicted where each step runs the same layers with "
            "as many inputs. Measure plans by `actune measure` instead."
        )


def _calls_seen(step: StepProfile) -> set[tuple[str, str, int, int, int]]:
    tensors = {call.call: (len(call.inputs), len(call.outputs)) for call in step.calls}
    return {(slot.kind, slot.layer_fqn, slot.call, *tensors[slot.call]) for slot in step.slots if slot.call in tensors}
