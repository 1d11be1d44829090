"""The Python config that torchtitan 0.3.0 takes with `--module MODULE --config FUNCTION`.

torchtitan/config/manager.py imports MODULE and calls FUNCTION, which returns a `Trainer.Config`; its field
`activation_checkpoint` holds the config of an AC policy, and each family's parallelize.py builds that policy and calls
`apply(model)`, before it compiles each layer and before FSDP. A policy of one's own is a subclass of
`ActivationCheckpointing` (torchtitan/distributed/activation_checkpoint.py).
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence

from actune.errors import UsageError
from actune.export.spec import GENERATED_MARK, lines_literal, strings_literal
from actune.plan import Plan, dump_plan

# torchtitan 0.3.0, torchtitan/models/__init__.py: what `--module` takes without a package.
MODEL_FAMILIES = ("deepseek_v3", "flux", "gpt_oss", "kimi_k2_7", "llama3", "muse_glimmer", "qwen3", "qwen3_5")

_TAKEN_NAMES = frozenset({"actune", "dataclass", "leave_compile", "plan_for_stage", "replace", "torch", "with_actune"})

_HEAD = '''\
{mark}
"""A plan of actune for torchtitan 0.3.0.

{usage}
"""

'''

_POLICY = '''\
from dataclasses import dataclass, replace

import actune
{imports}from actune.export.stage import leave_compile, plan_for_stage
from torchtitan.distributed.activation_checkpoint import ActivationCheckpointing

LAYERS = {layers}

PLAN = {plan}


class ActuneAC(ActivationCheckpointing):
    """Gives each layer what the plan says."""

    @dataclass(kw_only=True, slots=True)
    class Config(ActivationCheckpointing.Config):
        """Left at its defaults: the plan decides."""

    def __init__(self, config, dump_folder=""):
        super().__init__(config, dump_folder)
        self._model = None

    def apply(self, model):
        """Applies the plan to a model, or to a pipeline stage of it."""
        if self.config != type(self).Config():
            raise ValueError(f"The plan decides all of AC, so leave its options at their defaults; got {{self.config}}")
        # Multimodal families call this a second time, for a part of the model that the plan has covered.
        if self._model is not None and any(module is model for module in self._model.modules()):
            return
        self._model = model
{disable_lru_cache}        plan, layer_fqns = plan_for_stage(model, PLAN, LAYERS)
        actune.apply_plan(model, plan, layer_fqns=layer_fqns)
        leave_compile(model, layer_fqns)
'''

_DISABLE_LRU_CACHE = """\
        # As torchtitan's own policies do: https://github.com/pytorch/pytorch/issues/166926
        torch._C._dynamo.eval_frame._set_lru_cache(False)
"""

_BUDGET_IMPORTS = """\
from dataclasses import replace

from torchtitan.distributed.activation_checkpoint import MemoryBudgetAC
"""

_WITH_COMPILE = '''

def with_actune(config):
    """A `Trainer.Config` with this plan; each layer is compiled, as it was when the plan was measured."""
    others = [name for name in config.compile.components if name != "model"] if config.compile.enable else []
    compiled = replace(config.compile, enable=True, components=["model", *others])
    return replace(config, activation_checkpoint={policy}, compile=compiled)
'''

_WITHOUT_COMPILE = '''

def with_actune(config):
    """A `Trainer.Config` with this plan; the model is not compiled, as it was not when the plan was measured."""
    others = [name for name in config.compile.components if name != "model"] if config.compile.enable else []
    compiled = replace(config.compile, enable=bool(others), components=others or config.compile.components)
    return replace(config, activation_checkpoint={policy}, compile=compiled)
'''

_FACTORY = '''

def {factory}():
    """The base config with this plan."""
    from {base_module} import {base_function}

    return with_actune({base_function}())
'''

_USAGE_WITH_BASE = """\
Run torchtitan with `--module {module} --config {factory}`, with the folder of this file on PYTHONPATH.
Leave compile of the model as `with_actune` sets it: checkpoints for compiled layers are made differently."""

_USAGE_WITHOUT_BASE = """\
In a config function of your own, with the folder of this file on PYTHONPATH:

    from {module} import with_actune

    def my_config():
        return with_actune(llama3_8b())

Leave compile of the model as it sets it: checkpoints for compiled layers are made differently."""


def parse_base(base: str) -> tuple[str, str]:
    """Module and function of a base config, `llama3:llama3_8b` or `my_package.config_registry:my_config`.

    Raises:
        UsageError: the text has another form.
    """
    module, _, function = base.partition(":")
    names = [*module.split("."), function]
    if not all(name.isidentifier() and name.isascii() and not keyword.iskeyword(name) for name in names):
        raise UsageError(
            f"--base {base!r} does not name a config function. Expected MODULE:FUNCTION, such as "
            "llama3:llama3_debugmodel or my_package.config_registry:my_config."
        )
    if module in MODEL_FAMILIES:
        module = f"torchtitan.models.{module}.config_registry"
    return module, function


def factory_name(name: str) -> str:
    """The config function's name, from a name that is an identifier: not one that the module uses itself."""
    return f"{name}_config" if name in _TAKEN_NAMES else name


def config_module_source(
    plan: Plan, layer_fqns: Sequence[str], *, module: str, factory: str, base: tuple[str, str] | None
) -> str:
    """Source of the config module.

    Args:
        plan: with compile off or layer, which is left to torchtitan.
        layer_fqns: every layer of the model that the plan was made for.
        module: the name under which the file is imported.
        factory: the config function's name.
        base: module and function of the config that it extends.
    """
    compiles = plan.compile == "layer"
    policy = _POLICY.format(
        imports="import torch\n" if compiles else "",
        layers=strings_literal(tuple(layer_fqns)),
        plan=lines_literal(dump_plan(plan)),
        disable_lru_cache=_DISABLE_LRU_CACHE if compiles else "",
    )
    return _module(policy, "ActuneAC.Config()", compiles=compiles, module=module, factory=factory, base=base)


def budget_module_source(memory_budget: float, *, module: str, factory: str, base: tuple[str, str] | None) -> str:
    """Source of the config module where every layer has one memory budget, for which torchtitan has its own policy."""
    policy = f"MemoryBudgetAC.Config(memory_budget={float(memory_budget)!r})"
    return _module(_BUDGET_IMPORTS, policy, compiles=True, module=module, factory=factory, base=base)


def _module(head: str, policy: str, *, compiles: bool, module: str, factory: str, base: tuple[str, str] | None) -> str:
    usage = (_USAGE_WITH_BASE if base else _USAGE_WITHOUT_BASE).format(module=module, factory=factory)
    source = _HEAD.format(mark=GENERATED_MARK, usage=usage) + head
    source += (_WITH_COMPILE if compiles else _WITHOUT_COMPILE).format(policy=policy)
    if base:
        source += _FACTORY.format(factory=factory, base_module=base[0], base_function=base[1])
    return source
