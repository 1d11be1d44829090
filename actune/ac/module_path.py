"""Which module of a region is running: for rules that name op outputs by the module they come from."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn
from torch.fx.traceback import get_current_meta
from torch.utils.hooks import RemovableHandle

from actune.plan import WHOLE_LAYER

_WRAPPED = "_checkpoint_wrapped_module"
_INDEXED = re.compile(r"(?:\.__dict__\['_modules'\])?\[['\"]?([^'\"\]]+)['\"]?\]")


class ModulePath:
    """Follows the innermost running module of a region by hooks on its submodules.

    The hooks are on the region's own modules, not process-wide, and only there from `attach` to `detach`: they would
    slow down, and break the graphs of, other plans that are ready for the same model.
    """

    def __init__(self, region_module: nn.Module, only: Collection[str] | None = None) -> None:
        """Args:
        region_module: the region's.
        only: FQNs below it of the modules to follow; None for all.
        """
        self._region_module = region_module
        self._only = only
        self._running: list[str] = []
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Hooks the region's submodules."""
        for fqn, module in self._region_module.named_modules():
            if fqn and (self._only is None or fqn in self._only):
                self._handles.append(module.register_forward_pre_hook(partial(self._enter_hook, fqn), prepend=True))
                # Called on exceptions too: early stop leaves a recomputation by one.
                self._handles.append(module.register_forward_hook(self._leave_hook, always_call=True))

    def _enter_hook(self, fqn: str, module: nn.Module, args: Any) -> None:
        self._running.append(fqn)

    def _leave_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._running.pop()

    def restart(self) -> None:
        """Forget what an earlier call left behind."""
        self._running.clear()

    def innermost(self) -> str:
        """FQN below the region of the innermost running module that is followed, `.` for the region itself."""
        return self._running[-1] if self._running else WHOLE_LAYER

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class TracedModulePath:
    """The same under torch.compile, from the module stack that Dynamo keeps for each node it traces.

    While AOTAutograd traces a checkpointed region, the node's meta is the current one and its `nn_module_stack` has
    paths such as `L['self'].layers.0.__dict__['_modules']['_checkpoint_wrapped_module'].attention.wo`.
    """

    def innermost(self) -> str:
        """As `ModulePath.innermost`."""
        stack = get_current_meta().get("nn_module_stack")
        if not stack:
            return WHOLE_LAYER
        path = next(reversed(stack.values()))[0]
        below = path.rpartition(_WRAPPED)[2]
        below = below.removeprefix("']").removeprefix('"]')
        return _INDEXED.sub(r".\1", below).strip(".") or WHOLE_LAYER
