"""The module that torchtitan 0.1.0 to 0.2.2 import for `[experimental] custom_import`, to apply a plan layer by layer.

These versions have no place for an AC policy of one's own. Every model family calls a function `apply_ac(model,
ac_config, …)` unless `activation_checkpoint.mode` is "none" (models/*/infra/parallelize.py), and train.py imports the
custom module before it builds the model; so the module replaces that one function, in its home and wherever its name
was imported already.
"""

from __future__ import annotations

from collections.abc import Sequence

from actune.export.spec import GENERATED_MARK, lines_literal, strings_literal
from actune.export.torchtitan_versions import TorchtitanVersion
from actune.plan import Plan, dump_plan

_MODULE = '''\
{mark}
"""Applies a plan of actune in torchtitan {version}.

torchtitan imports this module for `[experimental] custom_import`, before it builds the model. It replaces `apply_ac`,
which torchtitan calls unless `activation_checkpoint.mode` is "none"; the other AC fields have no effect.
"""

import sys
from dataclasses import replace

import actune
{imports}import {home} as home
from actune.export.stage import leave_compile, plan_for_stage
from torchtitan.tools.logging import logger

# Whether the plan was measured with each layer compiled, which is left to torchtitan's own compile.
COMPILES_LAYERS = {compiles_layers}

LAYERS = {layers}

PLAN = {plan}


def apply_plan(model, ac_config, **options):
    """Stands in for torchtitan's `apply_ac`."""
    compiles_layers = options.get("model_compile_enabled", COMPILES_LAYERS)
    if compiles_layers != COMPILES_LAYERS:
        logger.warning(f"The plan was measured with compiled layers: {{COMPILES_LAYERS}}, here: {{compiles_layers}}")
{disable_lru_cache}    plan, layer_fqns = plan_for_stage(model, PLAN, LAYERS)
    plan = replace(plan, compile="layer" if compiles_layers else "off")
    actune.apply_plan(model, plan, layer_fqns=layer_fqns)
    leave_compile(model, layer_fqns)
    logger.info(f"Applied actune's plan to the model: {{plan.describe()}}")


if not hasattr(home, "apply_ac"):
    raise ImportError(
        "{home} has no apply_ac: "
        "this module was made for torchtitan {version}. Export the plan again with the --version that is installed."
    )

_torchtitans_own = home.apply_ac
for _name, _module in list(sys.modules.items()):
    if _name.partition(".")[0] == "torchtitan" and vars(_module).get("apply_ac") is _torchtitans_own:
        _module.apply_ac = apply_plan
'''

_DISABLE_LRU_CACHE = """\
    # As torchtitan's own apply_ac does: https://github.com/pytorch/pytorch/issues/166926
    torch._C._dynamo.eval_frame._set_lru_cache(False)
"""


def import_module_source(plan: Plan, layer_fqns: Sequence[str], version: TorchtitanVersion) -> str:
    """Source of the custom module.

    Args:
        plan: with compile off or layer, which is left to torchtitan.
        layer_fqns: every layer of the model that the plan was made for.
        version: of torchtitan.
    """
    compiles = plan.compile == "layer"
    disables = compiles and version.disables_dynamo_lru_cache
    return _MODULE.format(
        mark=GENERATED_MARK,
        version=version.name,
        imports="import torch\n" if disables else "",
        home=version.apply_ac_home,
        compiles_layers=compiles,
        layers=strings_literal(tuple(layer_fqns)),
        plan=lines_literal(dump_plan(plan)),
        disable_lru_cache=_DISABLE_LRU_CACHE if disables else "",
    )
