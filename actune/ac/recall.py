"""Full AC that recalls what chose experts in the forward: see `routing`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from actune.ac.ops import CHOOSING_OPS, MATMULS, Op, op_name
from actune.ac.routing import Routing
from actune.errors import PlanError
from actune.plan import WHOLE_LAYER

_Where = Literal["scopes", "routers"]


class RoutingContexts:
    """The `context_fn` of a region under full AC that keeps what chooses experts, and nothing else.

    SAC would look at every op of the region, which takes tens of microseconds each. A mode of our own, which takes
    six, is on where experts are chosen alone: by hooks on these modules, and from the second call on only in the
    routers, if the first call has chosen nowhere else.
    """

    def __init__(self, region_module: nn.Module, region_fqn: str, routing: Routing) -> None:
        self.region_fqn = region_fqn
        self.where: _Where = "scopes"
        self.phase: _Phase | None = None
        self._region_module = region_module
        self._routing = routing
        self._handles: list[RemovableHandle] = []

    def __call__(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """The contexts of one forward and of its recomputation."""
        kept: list[tuple[Op, Any]] = []
        return _Forward(self, self.where, kept), _Recomputation(self, self.where, kept)

    def attach(self) -> None:
        """Hooks the modules that route, and the experts."""
        for fqns, enter, leave in (
            (self._routing.scopes, partial(self._enter, "scopes", True), partial(self._leave, "scopes")),
            (self._routing.experts, partial(self._enter, "scopes", False), partial(self._leave, "scopes")),
            (self._routing.routers, self._enter_router, self._leave_router),
        ):
            for fqn in fqns:
                module = self._region_module if fqn == WHOLE_LAYER else self._region_module.get_submodule(fqn)
                self._handles.append(module.register_forward_pre_hook(_Hook(enter)))
                # Called on exceptions too: early stop leaves a recomputation by one.
                self._handles.append(module.register_forward_hook(_Hook(leave), always_call=True))

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, where: _Where, on: bool) -> None:
        if self.phase is not None and self.phase.where == where:
            self.phase.enter(on)

    def _leave(self, where: _Where) -> None:
        if self.phase is not None and self.phase.where == where:
            self.phase.leave()

    def _enter_router(self) -> None:
        if self.phase is not None:
            self.phase.routers_running += 1
            self._enter("routers", True)

    def _leave_router(self) -> None:
        if self.phase is not None:
            self._leave("routers")
            self.phase.routers_running -= 1


@dataclass(frozen=True)
class _Hook:
    act: Callable[[], None]

    def __call__(self, *args: Any) -> None:
        self.act()


class _Phase(TorchDispatchMode):
    """A forward or a recomputation of a region, as a context; the mode is on where experts are chosen."""

    def __init__(self, contexts: RoutingContexts, where: _Where, kept: list[tuple[Op, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where
        self.kept = kept
        self.routers_running = 0
        self.contexts = contexts
        self._wanted: list[bool] = []  # by each module that is running and says so
        self._is_on = False

    def __enter__(self) -> Self:
        self._outer = self.contexts.phase
        self.contexts.phase = self
        return self

    def __exit__(self, *exc: object) -> None:
        # Hooks are not called when the user interrupts a module.
        self._wanted.clear()
        self._switch()
        self.contexts.phase = self._outer

    def enter(self, on: bool) -> None:
        """A module begins in which the mode is to be on, or off."""
        self._wanted.append(on)
        self._switch()

    def leave(self) -> None:
        """It ends."""
        self._wanted.pop()
        self._switch()

    def _switch(self) -> None:
        wanted = bool(self._wanted) and self._wanted[-1]
        if wanted and not self._is_on:
            super().__enter__()  # type: ignore[no-untyped-call]
            self._is_on = True
        elif not wanted and self._is_on and _get_current_dispatch_mode() is self:
            # Else a mode of the model's own is over it, and it stays on where it has nothing to do.
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._is_on = False

    def routes(self, op: Op) -> bool:
        """Whether the op chooses experts, or makes the scores to choose by."""
        return op in CHOOSING_OPS or (self.routers_running > 0 and op in MATMULS)


class _Forward(_Phase):
    """Keeps what chooses experts."""

    def __init__(self, contexts: RoutingContexts, where: _Where, kept: list[tuple[Op, Any]]) -> None:
        super().__init__(contexts, where, kept)
        self._chose_outside = False

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if exc[0] is not None:  # what the rest of the forward would have chosen is not known
            return
        self.contexts.where = "routers" if self.kept and not self._chose_outside else "scopes"

    def __torch_dispatch__(self, op: Op, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = op(*args, **(kwargs or {}))
        if self.routes(op):
            self._chose_outside |= self.routers_running == 0
            self.kept.append((op, _copy(output)))
        return output


class _Recomputation(_Phase):
    """Recalls it."""

    def __enter__(self) -> Self:
        self._recalled = 0
        return super().__enter__()

    def __torch_dispatch__(self, op: Op, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not self.routes(op):
            return op(*args, **(kwargs or {}))
        kept_op, kept = self.kept[self._recalled] if self._recalled < len(self.kept) else (None, None)
        self._recalled += 1
        if op is not kept_op:
            raise PlanError(
                f"save_routing: {self.contexts.region_fqn} calls {op_name(op)} as number {self._recalled} of what "
                "chooses experts when it is recomputed, where its forward called "
                f"{'none' if kept_op is None else op_name(kept_op)}. A layer that routes by other code each time can't "
                "be checkpointed: leave it without AC."
            )
        return _copy(kept)


def _copy(output: Any) -> Any:
    """A copy, as the router's later code may write to what it got, and does so again in the recomputation."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)
