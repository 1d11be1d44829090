"""torch.compile in place: on a module, reversible, with the compiler's own memory budget where a plan asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch._functorch.config as functorch_config
from torch import nn

from actune.errors import PlanError


@dataclass(frozen=True, slots=True)
class MemoryBudgetBackend:
    """Inductor under `torch._functorch.config.activation_memory_budget`, patched only while it compiles.

    A backend of its own, compared by value: Dynamo reuses code between modules only if their backends are equal, and
    its guards do not see functorch's config.
    """

    memory_budget: float

    def __call__(self, graph_module: Any, example_inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx

        with functorch_config.patch(activation_memory_budget=self.memory_budget):
            return compile_fx(graph_module, example_inputs)


class CompiledModule:
    """`nn.Module.compile` that can be switched off and on again without compiling anew."""

    def __init__(self, module: nn.Module, fqn: str, *, memory_budget: float | None = None) -> None:
        if module._compiled_call_impl is not None:
            raise PlanError(
                f"compile: {fqn or 'the model'} is compiled already. Apply the plan to a model that is not compiled: "
                "the plan says how to compile, and the order is AC, compile, FSDP."
            )
        self._module = module
        backend: str | Callable[..., Any] = "inductor" if memory_budget is None else MemoryBudgetBackend(memory_budget)
        module.compile(backend=backend)
        self._compiled_call = module._compiled_call_impl
        module._compiled_call_impl = None

    def attach(self) -> None:
        """Calls of the module run compiled from here on."""
        self._module._compiled_call_impl = self._compiled_call

    def detach(self) -> None:
        """Calls of the module run eagerly again."""
        self._module._compiled_call_impl = None
