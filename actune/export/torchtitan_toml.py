"""The formats of torchtitan 0.1.0 to 0.2.2: keys of its TOML, and a custom module where keys can't say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from actune import tomldoc
from actune.errors import UsageError, shorten
from actune.export.spec import Export, identifier
from actune.export.torchtitan_fields import nearest_fields
from actune.export.torchtitan_import import import_module_source
from actune.export.torchtitan_layers import check_layer_names, has_experts, settle_compile
from actune.export.torchtitan_versions import TorchtitanVersion
from actune.plan import Plan
from actune.records import ModelStructure

_MODULE_FOLDER = "the folder of the module must be on PYTHONPATH"


def export_toml(
    plan: Plan,
    structure: ModelStructure,
    version: TorchtitanVersion,
    *,
    into: str | None,
    into_name: str,
    approximate: bool,
    name: str,
) -> Export:
    """The plan as TOML, with a module where `[activation_checkpoint]` can't say it and no approximation is asked for.

    Raises:
        UsageError: neither keys nor a module can say the plan, or `into` has a `custom_import` already.
        PlanError: the plan does not fit the model.
    """
    check_layer_names(structure.layer_fqns, f"torchtitan {version.name}", below_parts=False)
    treatments = plan.resolve(structure.layer_fqns)
    fields = nearest_fields(treatments, version)
    compiles, compile_lost = settle_compile(plan, approximate=approximate)
    module_name = f"{identifier(name)}_ac"
    existing = tomldoc.read(into, source=into_name) if into is not None else {}
    compile_sections = _compile_sections(existing, version, compiles=compiles, into_name=into_name)
    if approximate or not fields.lost:
        sections: dict[str, dict[str, Any]] = {"activation_checkpoint": dict(fields.values), **compile_sections}
        if _custom_import(existing) == module_name:
            # Left by an earlier export of the same name, it would go on to apply that plan.
            sections["experimental"] = {"custom_import": ""}
        notes = fields.notes
        if has_experts(structure) and any(t.is_checkpointed and t.save_routing for t in treatments.values()):
            notes += (
                f"torchtitan {version.name} has no save_routing, which the plan was measured with: recomputed "
                "routers run again, and may send a token to other experts than the forward did.",
            )
        hint = "\n".join(("Use it with --job.config_file.", *(f"note: {note}" for note in notes)))
        return Export(
            ((f"{identifier(name)}.toml", _merge(into, sections, into_name)),), fields.lost + compile_lost, hint
        )

    if any(treatment.policy == "memory_budget" for treatment in treatments.values()):
        raise UsageError(
            f'policy "memory_budget": torchtitan {version.name} knows one budget for all layers at most; it would '
            f"lose this: {' '.join(fields.lost)} Export with --approximate to accept that, or export --format actune."
        )
    _refuse_other_import(existing, module_name, into_name)
    sections = {
        # Any mode but "none" makes torchtitan call what the module replaces.
        "activation_checkpoint": {"mode": "full"},
        **compile_sections,
        "experimental": {"custom_import": module_name},
    }
    source = import_module_source(replace(plan, compile="layer" if compiles else "off"), structure.layer_fqns, version)
    return Export(
        ((f"{identifier(name)}.toml", _merge(into, sections, into_name)), (f"{module_name}.py", source)),
        (),
        f"Use it with --job.config_file; {_MODULE_FOLDER}, and actune installed.\n"
        f"The module {module_name} applies the plan, because fields alone would lose: {fields.lost[0]}",
    )


def _merge(into: str | None, sections: Mapping[str, Mapping[str, Any]], into_name: str) -> str:
    return tomldoc.merge(into or "", sections, source=into_name)


def _compile_sections(
    existing: Mapping[str, Any], version: TorchtitanVersion, *, compiles: bool, into_name: str
) -> dict[str, dict[str, Any]]:
    """The compile keys. Whether the loss is compiled stays as the file has it; the plan is about the model."""
    if not version.has_compile_section:
        return {"training": {"compile": compiles}}
    section = existing.get("compile", {})
    # torchtitan/config/job_config.py, 0.2.0 and 0.2.2: off by default, and if on then for model and loss.
    enabled = isinstance(section, Mapping) and section.get("enable") is True
    components = section.get("components", ["model", "loss"]) if enabled else []
    if not isinstance(components, list):
        raise UsageError(f"{into_name}: [compile] components is {shorten(components)}. Expected a list of names.")
    others = [component for component in components if component != "model"]
    wanted = ["model", *others] if compiles else others
    return {"compile": {"enable": True, "components": wanted} if wanted else {"enable": False}}


def _custom_import(existing: Mapping[str, Any]) -> Any:
    section = existing.get("experimental", {})
    return section.get("custom_import") if isinstance(section, Mapping) else None


def _refuse_other_import(existing: Mapping[str, Any], module_name: str, into_name: str) -> None:
    found = _custom_import(existing)
    if found and found != module_name:
        raise UsageError(
            f"{into_name}: [experimental] custom_import is {found!r} already, and torchtitan imports one module only. "
            f"Set it to '' here and add `import {found}` to the exported {module_name}.py, or use --approximate."
        )
