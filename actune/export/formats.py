"""`export_plan`: a plan in one of the formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from actune.errors import UsageError
from actune.export.spec import Export, identifier
from actune.export.torchtitan_config import budget_module_source, config_module_source, factory_name, parse_base
from actune.export.torchtitan_layers import check_layer_names, settle_compile
from actune.export.torchtitan_toml import export_toml
from actune.export.torchtitan_versions import version_named
from actune.plan import Plan, Treatment, compress_fqns_text, dump_plan
from actune.records import ModelStructure

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "actune": "the plan itself as TOML, with its provenance, for actune.load_plan",
        "torchtitan-toml": "keys of a torchtitan 0.1.0, 0.2.0 or 0.2.2 config, with a module where keys can't say it",
        "torchtitan": "a Python config module for torchtitan 0.3.0",
    }
)
_PYTHON_CONFIG_VERSION = "0.3.0"


def export_plan(
    plan: Plan,
    structure: ModelStructure,
    *,
    format: str,
    version: str | None = None,
    into: str | None = None,
    into_name: str = "the file",
    approximate: bool = False,
    base: str | None = None,
    name: str,
) -> Export:
    """The plan in another program's format.

    Args:
        plan: the plan.
        structure: the layers of the model that it was made for.
        format: a key of FORMATS.
        version: of the program; None for the newest that the format knows.
        into: torchtitan-toml: the text of a config, in which the keys are set.
        into_name: what to call it in messages.
        approximate: take the nearest that the format can say, and report in `lost` what that changes. torchtitan-toml
            then has keys only and no module.
        base: torchtitan: the config to extend, `llama3:llama3_8b` or `my_package.module:function`.
        name: the study's or the plan's, for files and what is generated in them.

    Raises:
        UsageError: the format or version is not known, an option does not go with the format, `into` is no TOML or is
            in the way, or the format can't say the plan.
        PlanError: the plan does not fit the model.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: not a format. Expected one of: {', '.join(FORMATS)}.")
    if into is not None and format != "torchtitan-toml":
        raise UsageError(
            f"--into: --format {format} makes a file of its own. Leave --into out, or use torchtitan-toml."
        )
    if base is not None and format != "torchtitan":
        raise UsageError(f"--base {base}: --format {format} extends no config function. Leave it out.")
    if format == "torchtitan-toml":
        return export_toml(
            plan,
            structure,
            version_named(version),
            into=into,
            into_name=into_name,
            approximate=approximate,
            name=name,
        )
    if format == "torchtitan":
        if version not in (None, _PYTHON_CONFIG_VERSION):
            raise UsageError(
                f"--version {version}: --format torchtitan is for torchtitan {_PYTHON_CONFIG_VERSION}. For 0.1.0 to "
                "0.2.2 use --format torchtitan-toml."
            )
        return _export_config(plan, structure, approximate=approximate, base=base, name=name)
    if version is not None:
        raise UsageError(f"--version {version}: --format actune has one version only. Leave it out.")
    plan.resolve(structure.layer_fqns)
    return Export(
        ((f"{identifier(name)}.toml", dump_plan(plan)),),
        (),
        "Apply it before FSDP: actune.apply_plan(model, actune.load_plan(path)).",
    )


def _export_config(plan: Plan, structure: ModelStructure, *, approximate: bool, base: str | None, name: str) -> Export:
    based_on = parse_base(base) if base is not None else None
    check_layer_names(structure.layer_fqns, f"torchtitan {_PYTHON_CONFIG_VERSION}", below_parts=True)
    treatments = plan.resolve(structure.layer_fqns)
    compiles, lost = settle_compile(plan, approximate=approximate)
    own_name = identifier(name)
    module, factory = f"{own_name}_config", factory_name(own_name)
    budgets = {fqn: given for fqn, given in treatments.items() if given.policy == "memory_budget"}
    kinds = set(treatments.values())
    if budgets and len(kinds) == 1:
        (budget,) = {given.memory_budget for given in budgets.values() if given.memory_budget is not None}
        source = budget_module_source(budget, module=module, factory=factory, base=based_on)
    else:
        if budgets:
            plan, budget_lost = _without_budgets(plan, treatments, list(budgets), approximate=approximate)
            lost += budget_lost
        source = config_module_source(
            replace(plan, compile="layer" if compiles else "off"),
            structure.layer_fqns,
            module=module,
            factory=factory,
            base=based_on,
        )
    run = (
        f"Run torchtitan with --module {module} --config {factory}; "
        if based_on
        else f"In your config function return with_actune(config), from {module}; "
    )
    return Export(((f"{module}.py", source),), lost, f"{run}its folder must be on PYTHONPATH, and actune installed.")


def _without_budgets(
    plan: Plan, treatments: Mapping[str, Treatment], budget_fqns: list[str], *, approximate: bool
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with full AC, which keeps no more, for layers on a memory budget.

    torchtitan 0.3.0 has one budget for all compiled regions (`MemoryBudgetAC.apply` sets it for the process).
    """
    where = compress_fqns_text(budget_fqns)
    reason = "torchtitan 0.3.0 has one memory budget for all layers, and the others have none or another"
    if not approximate:
        raise UsageError(
            f'policy "memory_budget" on {where}: {reason}. Export with --approximate to have full AC there, or export '
            "--format actune."
        )
    changed = {fqn: Treatment("full") if fqn in budget_fqns else given for fqn, given in treatments.items()}
    nearest = replace(Plan.from_treatments(changed), provenance=plan.provenance)
    return nearest, (f"policy: full AC instead of memory_budget on {where}: {reason}.",)
