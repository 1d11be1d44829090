"""Plans as TOML: parsing with clear errors, the canonical text, and the hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from actune import files, tomldoc
from actune.boundary import OutsideModel, take_schema, validate
from actune.errors import PlanError
from actune.plan.plan import CompileMode, Plan, Rule
from actune.plan.treatment import KNOBS_OF_POLICY, FilterBy, PolicyName, Treatment

MAX_PLAN_BYTES = 2**20


class _RuleTable(OutsideModel):
    layers: list[str]
    policy: PolicyName
    wrap: list[str] | None = None
    save_every_nth_mm: int | None = None
    save_ops: str | list[str] | None = None
    save: list[str] | None = None
    filter_fqns: list[str] | None = None
    filter_by: FilterBy | None = None
    early_stop: bool | None = None
    preserve_rng_state: bool | None = None
    save_routing: bool | None = None
    memory_budget: float | None = None


class _PlanFile(OutsideModel):
    compile: CompileMode = "off"
    rule: list[_RuleTable] | None = None
    provenance: dict[str, Any] | None = None


def parse_plan(text: str, *, source: str = "the plan") -> Plan:
    """A plan from TOML text.

    Raises:
        PlanError: the text is no TOML or no plan; the message names the source, the key and its value.
    """
    if len(text) > MAX_PLAN_BYTES:
        raise PlanError(f"{source} has {len(text)} characters; a plan has at most {MAX_PLAN_BYTES}.")
    table = tomldoc.read(text, source=source, error=PlanError)
    take_schema(table, source=source, error=PlanError)
    file = validate(_PlanFile, table, source=source, error=PlanError)
    rules = []
    for number, row in enumerate(file.rule or [], start=1):
        knobs = row.model_dump(exclude={"layers", "policy"}, exclude_none=True)
        try:
            rules.append(Rule(tuple(row.layers), treatment_from_knobs(row.policy, knobs)))
        except PlanError as error:
            raise PlanError(f"{source}: rule {number}: {error}") from None
    try:
        return Plan(tuple(rules), file.compile, file.provenance or {})
    except PlanError as error:
        raise PlanError(f"{source}: {error}") from None


def treatment_from_knobs(policy: PolicyName, knobs: dict[str, Any]) -> Treatment:
    """A treatment from the knobs that a file names.

    Raises:
        PlanError: a knob has no effect with the policy, even at its default value, or a value is out of range.
    """
    for name in knobs:
        if name not in KNOBS_OF_POLICY[policy]:
            allowed = ", ".join(sorted(KNOBS_OF_POLICY[policy])) or "no further key"
            raise PlanError(f'{name}: has no effect with policy = "{policy}", which takes {allowed}. Remove it.')
    if isinstance(knobs.get("save_ops"), str):
        knobs = knobs | {"save_ops": [knobs["save_ops"]]}
    return Treatment(policy, **{name: _frozen(value) for name, value in knobs.items()})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_plan(path: str | Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        PlanError: the file can't be read, or holds no plan.
    """
    text = files.read_text(path, what="plan", max_bytes=MAX_PLAN_BYTES, error=PlanError)
    return parse_plan(text, source=str(path))


def dump_plan(plan: Plan, *, with_provenance: bool = True) -> str:
    """The canonical TOML of a plan: every knob that its policies take is written, so no later default changes it.

    But for `save_routing`, which came later: plans without it have kept their text, and their hash.
    """
    return _write(plan, plan.provenance) if with_provenance and plan.provenance else _text(plan)


def _write(plan: Plan, provenance: Mapping[str, Any]) -> str:
    document: dict[str, Any] = {"schema": 1, "compile": plan.compile}
    if provenance:
        document["provenance"] = dict(provenance)
    return tomldoc.write(document, tables={"rule": [_rule_table(rule) for rule in plan.rules]})


@lru_cache(maxsize=4096)  # a search asks for the texts of the same plans again and again
def _text(plan: Plan) -> str:
    return _write(plan, {})


def _rule_table(rule: Rule) -> dict[str, Any]:
    treatment = rule.treatment
    table: dict[str, Any] = {"layers": list(rule.layers), "policy": treatment.policy}
    for field in fields(treatment):
        value = getattr(treatment, field.name)
        written = field.name in KNOBS_OF_POLICY[treatment.policy] and value != ()
        if field.name == "save_ops":
            written = treatment.policy == "selective"
            value = "default" if value == ("default",) else value
        if field.name == "filter_by":
            written = bool(treatment.filter_fqns)
        if field.name == "save_routing":
            written = not value
        if written:
            table[field.name] = list(value) if isinstance(value, tuple) else value
    return table


@lru_cache(maxsize=65_536)  # a search asks for the hashes of all its plans after each trial
def plan_hash(plan: Plan) -> str:
    """The plan's name in a study: 16 hexadecimal digits of the SHA-256 of its text without provenance.

    Plans that do the same to a model have one hash once they are canonical for it (`Plan.canonical_for`).
    """
    return hashlib.sha256(_text(plan).encode()).hexdigest()[:16]
