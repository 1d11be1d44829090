"""Plans on a model that `fully_shard` (FSDP2) has sharded already.

The order is AC, compile, FSDP: `fully_shard` hooks what stands in a layer's place, so parameters are gathered before
the checkpoint begins and sharded again after it has ended. A worker shards its model once and then switches plans. By
then the hooks are on the layer itself: a region around it would have them inside, and what is compiled would be cut at
each of them. So while a plan is attached the hooks move to a shell around whatever the plan puts in the layer's place.
That is the module that the right order makes.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.distributed._composable_state import _State

from actune.ac.regions import Region

_HOOKS = {
    "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
    "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
}
"""nn.Module's tables of hooks, by handle; and for each the tables of flags that go with it."""


class Shell(Region):
    """What stands in the place of an FSDP2 module while a plan is attached. It is invisible in FQNs, as regions are."""

    def __init__(self, module: nn.Module, holders: tuple[tuple[nn.Module, str], ...]) -> None:
        """Changes nothing yet.

        Args:
            module: what `fully_shard` was applied to.
            holders: its parents, each with the name that it has there.
        """
        super().__init__(module)
        self._shelled = (module,)  # in a tuple: it is no child
        self._holders = holders

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls what is inside; FSDP's hooks are around this call."""
        return self._checkpoint_wrapped_module(*args, **kwargs)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The walk of what is inside."""
        yield from self._checkpoint_wrapped_module.named_modules(memo, prefix, remove_duplicate)

    def attach(self) -> None:
        """Puts itself around what stands in the module's place now, and takes FSDP's hooks over."""
        (module,) = self._shelled
        parent, name = self._holders[0]
        self._modules["_checkpoint_wrapped_module"] = parent._modules[name]
        for parent, name in self._holders:
            parent._modules[name] = self
        _move_hooks(module, self)

    def detach(self) -> None:
        """Gives the hooks back and takes itself away."""
        (module,) = self._shelled
        _move_hooks(self, module)
        for parent, name in self._holders:
            parent._modules[name] = self._checkpoint_wrapped_module


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module itself."""
    # Importing it takes longer than most of what uses this; where nobody has, nothing is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def sharded_below(module: nn.Module) -> str | None:
    """The FQN of a module below this one that was sharded on its own, or None."""
    return next((fqn for fqn, child in module.named_modules() if child is not module and is_sharded(child)), None)


def _move_hooks(source: nn.Module, target: nn.Module) -> None:
    for table, flags in _HOOKS.items():
        hooks: OrderedDict[int, Callable[..., Any]] = getattr(source, table)
        for number in [number for number, hook in hooks.items() if _is_of_fsdp(hook)]:
            taken: OrderedDict[int, Callable[..., Any]] = getattr(target, table)
            taken[number] = hooks.pop(number)
            if table == "_forward_pre_hooks":
                taken.move_to_end(number, last=False)  # as fully_shard registers it
            for flag in flags:
                if number in getattr(source, flag):
                    getattr(target, flag)[number] = getattr(source, flag).pop(number)


def _is_of_fsdp(hook: Any) -> bool:
    """Whether it is a method of FSDP's state, or wraps one, as those of `fully_shard([a, b])` do."""
    while hook is not None:
        if isinstance(getattr(hook, "__self__", None), _State):
            return True
        hook = getattr(hook, "__wrapped__", None)
    return False
