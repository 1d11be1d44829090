"""The plan: what every layer gets, plus compile. Immutable, hashable, with one canonical form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

from actune.errors import PlanError
from actune.plan.patterns import LayerPattern, compress_fqns
from actune.plan.treatment import NO_AC, WHOLE_LAYER, SavedOp, Treatment

CompileMode = Literal["off", "inside", "layer", "model", "off+ops", "inside+ops"]
COMPILE_MODES: tuple[CompileMode, ...] = get_args(CompileMode)
MAX_PATTERNS = 4096


def misfit(treatment: Treatment, compile: CompileMode) -> str | None:
    """Why a plan with this `compile` can't have the treatment; None if it can."""
    if treatment.policy == "memory_budget" and compile not in ("layer", "model"):
        return (
            f'policy: "memory_budget" is the compiler\'s own, but compile = "{compile}". '
            'Set compile = "layer" or "model".'
        )
    if treatment.policy == "selective" and compile == "inside":
        return (
            'policy: "selective" can\'t see the ops of a region that is compiled inside its checkpoint. '
            'Set compile = "inside+ops" to have it see what is compiled as one op, "layer", "model" or "off", or '
            'policy = "full".'
        )
    if treatment.policy == "selective" and compile == "inside+ops":
        below = [entry for entry in treatment.save if SavedOp.parse(entry).module_fqn != WHOLE_LAYER]
        hidden = [f"save: '{entry}'" for entry in below] + [f"filter_fqns: '{fqn}'" for fqn in treatment.filter_fqns]
        if hidden:
            return (
                f"{hidden[0]} names a module in a region that is compiled inside its checkpoint: with compile = "
                '"inside+ops" all that is compiled of it is one op of the region itself. Name '
                '.::inductor_compiled_code, or set compile = "layer".'
            )
    return None


@dataclass(frozen=True, slots=True)
class Rule:
    """Layers, by patterns over their FQNs, and the treatment that they get."""

    layers: tuple[str, ...]
    treatment: Treatment

    def __post_init__(self) -> None:
        if not self.layers:
            raise PlanError('layers: the list is empty. Name at least one pattern, such as "layers.*".')
        for text in self.layers:
            LayerPattern(text)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every layer gets, plus compile.

    Attributes:
        rules: the first rule that matches a layer holds; a layer that none matches is left alone.
        compile: `off`; `inside`: checkpoint(compile(region)); `layer`: compile(layer with its checkpoints); `model`.
            `off+ops` and `inside+ops`: as `off` and `inside`, and what is compiled below a checkpoint (by the model
            itself, as FlexAttention is; by `inside`) is one op for SAC, `inductor_compiled_code`
            (`torch._inductor.config.wrap_inductor_compiled_regions`).
        provenance: what actune wrote about where the plan comes from; neither compared nor hashed nor applied.
    """

    rules: tuple[Rule, ...] = ()
    compile: CompileMode = "off"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew by another process, where the same strings have other hashes."""
        return (Plan, (self.rules, self.compile, self.provenance))

    def __post_init__(self) -> None:
        # Once: a search looks each of thousands of plans up again and again, and a plan has hundreds of knobs.
        object.__setattr__(self, "_hash", hash((self.rules, self.compile)))
        if self.compile not in COMPILE_MODES:
            raise PlanError(f"compile: '{self.compile}' is not known. Expected one of: {', '.join(COMPILE_MODES)}.")
        patterns = sum(len(rule.layers) for rule in self.rules)
        if patterns > MAX_PATTERNS or len(self.rules) > MAX_PATTERNS:
            raise PlanError(f"rule: {len(self.rules)} rules have {patterns} patterns. Expected at most {MAX_PATTERNS}.")
        for rule in self.rules:
            if (why := misfit(rule.treatment, self.compile)) is not None:
                raise PlanError(why)
        if self.compile == "model":
            shares = {r.treatment.memory_budget for r in self.rules if r.treatment.policy == "memory_budget"}
            if len(shares) > 1:
                raise PlanError(
                    f'memory_budget: {sorted(s for s in shares if s is not None)} in one plan with compile = "model": '
                    'one compiled graph has one budget. Use one value, or compile = "layer".'
                )

    @property
    def compiles_inside(self) -> bool:
        """Whether each region is compiled inside its checkpoint."""
        return self.compile in ("inside", "inside+ops")

    @classmethod
    def from_treatments(cls, treatments: Mapping[str, Treatment], *, compile: CompileMode = "off") -> Plan:
        """The canonical plan that gives each layer (by FQN, in the model's order) its treatment.

        Layers with the same treatment share a rule, rules are ordered by their first layer, and layers without AC
        stand in no rule: two plans that do the same to a model are then equal.
        """
        groups: dict[Treatment, list[str]] = {}
        for fqn, treatment in treatments.items():
            if treatment != NO_AC:
                groups.setdefault(treatment.canonical(), []).append(fqn)
        return cls(tuple(Rule(compress_fqns(fqns), treatment) for treatment, fqns in groups.items()), compile)

    def resolve(self, layer_fqns: Sequence[str]) -> dict[str, Treatment]:
        """The treatment of each layer, in the model's order.

        Raises:
            PlanError: a pattern matches no layer, or its range reaches outside the model.
        """
        return dict(zip(layer_fqns, _resolved(self.rules, tuple(layer_fqns)), strict=True))

    def canonical_for(self, layer_fqns: Sequence[str]) -> Plan:
        """The canonical plan that does the same to a model with these layers."""
        return Plan.from_treatments(self.resolve(layer_fqns), compile=self.compile)

    def describe(self) -> str:
        """One line for people: which layers get what."""
        parts = [f"{', '.join(rule.layers)}: {rule.treatment.label()}" for rule in self.rules]
        if self.compile != "off":
            parts.append(f"compile={self.compile}")
        return "; ".join(parts) or "no AC"


@lru_cache(maxsize=1024)  # a search asks for the treatments of the same plans again and again
def _resolved(rules: tuple[Rule, ...], layer_fqns: tuple[str, ...]) -> tuple[Treatment, ...]:
    treatments = dict.fromkeys(layer_fqns, NO_AC)
    taken: set[str] = set()
    for rule in rules:
        for text in rule.layers:
            for fqn in LayerPattern(text).select(layer_fqns):
                if fqn not in taken:
                    taken.add(fqn)
                    treatments[fqn] = rule.treatment
    return tuple(treatments.values())
