"""What of a plan's step runs compiled: graph breaks, modules that run eagerly all the same, and FlexAttention.

A break inside a checkpointed region compiles nothing of it and says nothing (pytorch #139989). So a step that compiles
nothing any more is watched from Python: compiled code does not call the `forward` of the modules that were traced into
it, code that Dynamo gave up does, and whatever inductor compiled is entered by `CompiledFxGraph.__call__`. On a card,
backward and recomputation run in a thread of autograd's own, and what is watched is the forward.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal

import torch._dynamo.utils as dynamo_utils
from torch import nn
from torch._higher_order_ops.flex_attention import sdpa_dense

from actune.plan import WHOLE_LAYER, Plan
from actune.records import CompiledCode

_FLEX = "flex_attention"
_EAGER_FLEX: CodeType = sdpa_dense.__code__
"""What the op `flex_attention` runs where it is not compiled: it makes the whole matrix of scores."""


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What warming a plan up taught.

    Attributes:
        compile_s: by how much the first step took longer than the second; None if the plan compiles nothing.
        code: what of the second step ran compiled.
    """

    compile_s: float | None
    code: CompiledCode


def frames_compiled() -> int:
    """How many frames Dynamo has compiled in this process so far."""
    return int(dynamo_utils.counters["frames"]["total"])


class GraphBreaks:
    """The places at which Dynamo stopped tracing since this was made."""

    def __init__(self) -> None:
        self._known = len(dynamo_utils.graph_break_reasons)

    def places(self) -> tuple[str, ...]:
        """Each as `file:line: why`, once, however often it was traced."""
        places: dict[str, str] = {}
        for reason in dynamo_utils.graph_break_reasons[self._known :]:
            where = reason.user_stack[-1] if reason.user_stack else None
            at = "unknown" if where is None else f"{os.path.basename(where.filename)}:{where.lineno}"
            # One line of code may be given up for several reasons, as tracing is tried again further in.
            places.setdefault(at, reason.reason.splitlines()[0])
        return tuple(f"{at}: {why}" for at, why in places.items())


class StepWatch:
    """Follows the calls of modules in Python during a step, and what of them entered compiled code."""

    def __init__(self, model: nn.Module) -> None:
        self._fqns = {id(module): fqn for fqn, module in model.named_modules() if not isinstance(module, nn.Identity)}
        self._running: list[tuple[FrameType, str]] = []
        self._called: dict[str, bool] = {}  # in the order of the first call; whether any entered compiled code
        self._compiled_call = _compiled_call_code()
        self._flex: set[Literal["compiled", "eager"]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches this thread; what was watching it before goes on afterwards."""
        before = sys.getprofile()
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code is self._compiled_call:
                self._called.update((fqn, True) for _, fqn in self._running)
                if _FLEX in (frame.f_locals["self"].source_code or ""):
                    self._flex.add("compiled")
            elif code is _EAGER_FLEX:
                self._flex.add("eager")
            elif code.co_name == "forward" and code.co_argcount:
                fqn = self._fqns.get(id(frame.f_locals.get(code.co_varnames[0])))
                if fqn is not None:
                    self._running.append((frame, fqn))
                    self._called.setdefault(fqn, False)
        elif event == "return" and self._running and self._running[-1][0] is frame:
            self._running.pop()

    def compiled_code(self, plan: Plan, layer_fqns: tuple[str, ...], breaks: GraphBreaks) -> CompiledCode:
        """What of the watched step ran compiled.

        Args:
            plan: which the step ran under.
            layer_fqns: the model's layers.
            breaks: from before anything was compiled under the plan.
        """
        return CompiledCode(breaks.places(), self.eager_fqns(_compiled_fqns(plan, layer_fqns)), self.flex_attention)

    def eager_fqns(self, compiled_fqns: tuple[str, ...]) -> tuple[str, ...]:
        """The outermost modules, of those that are to be compiled, that ran without entering compiled code.

        Args:
            compiled_fqns: what the plan compiles, with all that is below; the empty FQN is the model.
        """
        eager = [
            fqn
            for fqn, entered in self._called.items()
            if not entered and any(_is_below(fqn, outer) for outer in compiled_fqns)
        ]
        return tuple(fqn for fqn in eager if not any(_is_below(fqn, other) for other in eager if other != fqn))

    @property
    def flex_attention(self) -> Literal["compiled", "eager", "both"] | None:
        """How FlexAttention ran; None if it did not."""
        return "both" if len(self._flex) == 2 else next(iter(self._flex), None)


def _compiled_fqns(plan: Plan, layer_fqns: tuple[str, ...]) -> tuple[str, ...]:
    """What the plan compiles."""
    if plan.compile in ("off", "off+ops"):
        return ()
    if plan.compile == "model":
        return ("",)
    if plan.compile == "layer":
        return layer_fqns
    fqns = []
    for fqn, treatment in plan.resolve(layer_fqns).items():
        wrap = treatment.wrap if treatment.is_checkpointed else (WHOLE_LAYER,)
        fqns += [fqn if below == WHOLE_LAYER else f"{fqn}.{below}" for below in wrap]
    return tuple(fqns)


def _is_below(fqn: str, outer: str) -> bool:
    return fqn == outer or not outer or fqn.startswith(outer + ".")


def _compiled_call_code() -> CodeType:
    from torch._inductor.output_code import CompiledFxGraph

    return CompiledFxGraph.__call__.__code__
