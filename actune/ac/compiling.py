"""torch.compile in place: on a module, reversible, with the compiler's own memory budget where a plan asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

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


_code_numbers = itertools.count()


class SharedCode:
    """One code object for each kind of module that a plan compiles.

    Dynamo keeps what it compiled per code object, and after a few variants (`torch._dynamo.config.recompile_limit`)
    runs it eagerly for ever. All modules share the code of `nn.Module._call_impl`, so a plan with many treatments
    would get there; modules of one kind are to share what is compiled.
    """

    def __init__(self) -> None:
        self._codes: dict[Hashable, CodeType] = {}

    def call_of(self, module: nn.Module, kind: Hashable, fqn: str) -> Callable[..., Any]:
        """A function that calls the module, for torch.compile."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                _refuse_recompile_limit(code, fqn)
            return module._call_impl(*args, **kwargs)

        if kind not in self._codes:
            self._codes[kind] = call.__code__.replace(co_name=f"call_{next(_code_numbers)}")
        code = self._codes[kind]
        return FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def _refuse_recompile_limit(code: CodeType, fqn: str) -> None:
    """Raises PlanError if Dynamo has given this code up; it runs eagerly for other reasons too, such as a mode."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    limit = torch._dynamo.config.recompile_limit
    if len(_debug_get_cache_entry_list(code)) >= limit:
        raise PlanError(
            f"compile: {fqn or 'the model'} was compiled {limit} times for layers and inputs that differ, which is "
            "torch._dynamo.config.recompile_limit, and would run eagerly from here on. See why with "
            'TORCH_LOGS=recompiles, raise the limit, or set compile = "off".'
        )


class CompiledModule:
    """`nn.Module.compile` that can be switched off and on again without compiling anew."""

    def __init__(
        self,
        module: nn.Module,
        fqn: str,
        *,
        code: SharedCode,
        kind: Hashable,
        check: Callable[[], None],
        memory_budget: float | None = None,
        as_op: bool = False,
    ) -> None:
        """Nothing is compiled before the first call.

        Args:
            module: what to compile.
            fqn: its name in messages.
            code: of the plan's modules.
            kind: equal for modules that may share compiled code.
            check: called after each call; raises PlanError if what was compiled is not what the plan says.
            memory_budget: the compiler's own, None to leave it at its default.
            as_op: what is compiled is one op for SAC.

        Raises:
            PlanError: the module is compiled already.
        """
        if module._compiled_call_impl is not None:
            raise PlanError(
                f"compile: {fqn or 'the model'} is compiled already. Apply the plan to a model that is not compiled: "
                "the plan says how to compile, and the order is AC, compile, FSDP."
            )
        self._module = module
        self._check = check
        backend: str | Callable[..., Any] = "inductor" if memory_budget is None else MemoryBudgetBackend(memory_budget)
        options: dict[str, Any] | None = {_WRAP: True} if as_op else None
        self._compiled: Callable[..., Any] = torch.compile(
            code.call_of(module, kind, fqn), backend=backend, options=options
        )

    def attach(self) -> None:
        """Calls of the module run compiled from here on."""
        self._module._compiled_call_impl = self._call

    def detach(self) -> None:
        """Calls of the module run eagerly again."""
        self._module._compiled_call_impl = None

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        try:
            output = self._compiled(*args, **kwargs)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, PlanError):
                raise error.inner_exception from None
            raise
        self._check()
        return output


_WRAP = "wrap_inductor_compiled_regions"


def check_can_wrap(compile: str) -> None:
    """Raises PlanError if this torch can't make one op of what inductor compiled."""
    if not hasattr(inductor_config, _WRAP):
        raise PlanError(
            f'compile: "{compile}" needs torch._inductor.config.{_WRAP}, which torch {torch.__version__} does not '
            f'have. Upgrade torch, or set compile = "{compile.removesuffix("+ops")}".'
        )


class PiecesAsOps:
    """Calls of a module under which whatever the model compiles itself is compiled as one op for SAC.

    Inductor reads its config when it compiles (`torch._inductor.output_code.CompiledFxGraph`), which is at a piece's
    first call; the config is back as it was once the module returns. A piece that was compiled before stays as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        """Args: module: a model, a layer, or what a region recomputes."""
        self._module = module
        self._before: Callable[..., Any] | None = None

    def attach(self) -> None:
        """Calls of the module patch the config from here on."""
        self._before = self._module._compiled_call_impl
        self._module._compiled_call_impl = self._call

    def detach(self) -> None:
        """Calls of the module are what they were."""
        self._module._compiled_call_impl = self._before

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with inductor_config.patch({_WRAP: True}):
            return (self._before or self._module._call_impl)(*args, **kwargs)
