"""What one layer gets: the policy of its regions and the policy's knobs."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from actune.errors import PlanError, cut

PolicyName = Literal["none", "full", "selective", "memory_budget"]
FilterBy = Literal["shape", "name"]

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
WHOLE_LAYER = "."
MAX_LIST = 1000
MAX_FQN_LENGTH = 1000

_CHECKPOINT_KNOBS = frozenset({"wrap", "early_stop", "preserve_rng_state", "save_routing"})
_SAC_KNOBS = frozenset({"save_every_nth_mm", "save_ops", "save", "filter_fqns", "filter_by"})
KNOBS_OF_POLICY: dict[PolicyName, frozenset[str]] = {
    "none": frozenset(),
    "full": _CHECKPOINT_KNOBS,
    "selective": _CHECKPOINT_KNOBS | _SAC_KNOBS,
    "memory_budget": frozenset({"memory_budget", "save_routing"}),
}

_FQN = re.compile(r"[\w-]+(\.[\w-]+)*")
_OCCURRENCE = re.compile(r"0*[1-9][0-9]{0,8}")
_OP = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True, slots=True)
class SavedOp:
    """One entry of `save`: the output of an op, by the module that it runs in.

    `module_fqn` is below the region, `.` being the region itself. `occurrence` counts from 1 over the calls of this
    op in this module during one forward of the region; None stands for every occurrence.
    """

    module_fqn: str
    op_name: str
    occurrence: int | None

    @classmethod
    def parse(cls, text: str) -> SavedOp:
        """From `attention.wo::mm` or `attention::mm#2`.

        Raises:
            PlanError: the text has another form.
        """
        module_fqn, separator, op = text.partition("::")
        op_name, numbered, number = op.partition("#")
        well_formed = (
            bool(separator)
            and (module_fqn == WHOLE_LAYER or _FQN.fullmatch(module_fqn) is not None)
            and _OP.fullmatch(op_name) is not None
            and (not numbered or _OCCURRENCE.fullmatch(number) is not None)
        )
        if not well_formed:
            raise PlanError(
                f"save: '{text}' does not name an op output. Expected <module FQN below the region>::<op>, with #<n> "
                "for its n-th occurrence, such as attention.wo::mm or .::add#2 ('.' is the region itself)."
            )
        if op_name.endswith("_") and not op_name.endswith("__"):
            raise PlanError(
                f"save: '{text}' names an op that writes in place. Name the op whose output it writes to: what "
                "writes to a kept output is kept with it."
            )
        return cls(module_fqn, op_name, int(number) if numbered else None)

    def __str__(self) -> str:
        return f"{self.module_fqn}::{self.op_name}" + ("" if self.occurrence is None else f"#{self.occurrence}")


@dataclass(frozen=True, slots=True)
class Treatment:
    """The policy of a layer's regions with its knobs; knobs that the policy does not have keep their defaults.

    Attributes:
        policy: none, full, selective (SAC) or memory_budget (the compiler's own).
        wrap: what is checkpointed as a unit below the layer, as FQNs below it; `.` is the layer itself.
        save_every_nth_mm: selective: n ≥ 1 keeps matmuls 1, n+1, 2n+1, …; 0 keeps a matmul only if `save` names it.
            The rule for n = 2 is torchtitan's (torchtitan/distributed/activation_checkpoint.py).
        save_ops: selective: op names and named sets (`default`, `grouped_mm`, `cpu_attention`) whose outputs are kept.
        save: selective: op outputs kept by name, outside of the every-nth rule and its count.
        filter_fqns: selective: substrings of FQNs of Linears whose matmuls are recomputed and not counted.
        filter_by: whether a filter takes every matmul of the same shape with it (torchtitan's rule), or only the
            named Linears' own.
        early_stop: stop recomputing as soon as everything that backward needs is there.
        preserve_rng_state: recompute with the random numbers of the forward.
        save_routing: keep what chooses experts in a mixture (outputs of `topk` and the like, and of routers' matmuls
            that no filter names), so that a recomputation sends each token to the same ones. The compiler's own
            policy can't, and is refused where experts are chosen unless this is false.
        memory_budget: memory_budget: the share of the layer's activations that the compiler may keep, 0 to 1
            (`torch._functorch.config.activation_memory_budget`); it does not bound the peak.
    """

    policy: PolicyName
    wrap: tuple[str, ...] = (WHOLE_LAYER,)
    save_every_nth_mm: int = 2
    save_ops: tuple[str, ...] = ("default",)
    save: tuple[str, ...] = ()
    filter_fqns: tuple[str, ...] = ()
    filter_by: FilterBy = "shape"
    early_stop: bool = True
    preserve_rng_state: bool = True
    save_routing: bool = True
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise PlanError(f"policy: '{self.policy}' is not a policy. Expected one of: {', '.join(POLICIES)}.")
        for name, value in self.knobs_off_default().items():
            if name not in KNOBS_OF_POLICY[self.policy]:
                raise PlanError(
                    f'{name}: {value!r} has no effect with policy = "{self.policy}". Remove it; this policy takes: '
                    f"{', '.join(sorted(KNOBS_OF_POLICY[self.policy])) or 'nothing more'}."
                )
        for name in ("wrap", "save_ops", "save", "filter_fqns"):
            if (count := len(getattr(self, name))) > MAX_LIST:
                raise PlanError(f"{name}: the list has {count} entries. Expected at most {MAX_LIST}.")
        self._check_wrap()
        if self.save_every_nth_mm < 0:
            raise PlanError(f"save_every_nth_mm: {self.save_every_nth_mm} is negative. Expected 0, 1, 2, …")
        for op_name in self.save_ops:
            if _OP.fullmatch(op_name) is None:
                raise PlanError(f"save_ops: '{op_name}' is not the name of an op or of a set of ops.")
        for entry in self.save:
            SavedOp.parse(entry)
        for fqn in self.filter_fqns:
            if not fqn.strip("."):
                raise PlanError(
                    f"filter_fqns: '{fqn}' would match every module. Name Linears, such as moe.router.gate."
                )
        if self.filter_by not in get_args(FilterBy):
            raise PlanError(f'filter_by: \'{self.filter_by}\' is neither "shape" nor "name".')
        if self.policy == "memory_budget" and (self.memory_budget is None or not 0 <= self.memory_budget <= 1):
            raise PlanError(
                f'memory_budget: {self.memory_budget!r} is no share of the activations. policy = "memory_budget" '
                "needs memory_budget = a number from 0 (keep nothing) to 1 (keep all)."
            )

    def _check_wrap(self) -> None:
        if not self.wrap:
            raise PlanError('wrap: the list is empty. Name at least one module; "." is the layer itself.')
        for fqn in self.wrap:
            if len(fqn) > MAX_FQN_LENGTH or (fqn != WHOLE_LAYER and _FQN.fullmatch(fqn) is None):
                raise PlanError(f"wrap: '{cut(fqn)}' is not a FQN below the layer, such as attention or moe.experts.")
        wrapped = set(self.wrap)
        for inner in self.wrap:
            parts = inner.split(".")
            above = [WHOLE_LAYER, *(".".join(parts[:depth]) for depth in range(1, len(parts)))]
            for outer in above if inner != WHOLE_LAYER else ():
                if outer in wrapped:
                    raise PlanError(f"wrap: '{inner}' lies inside '{outer}'. A module can be in one region only.")
        if len(wrapped) < len(self.wrap):
            twice = next(fqn for fqn in self.wrap if self.wrap.count(fqn) > 1)
            raise PlanError(f"wrap: '{twice}' stands twice.")

    def knobs_off_default(self) -> dict[str, Any]:
        """The knobs that differ from their defaults, in the order of the fields."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "policy" and getattr(self, field.name) != field.default
        }

    def canonical(self) -> Treatment:
        """The one form of treatments that do the same: lists sorted, nothing twice, no filter_by without filters."""
        return _canonical(self)

    @property
    def is_checkpointed(self) -> bool:
        """Whether regions are wrapped for recomputation by PyTorch's checkpoint."""
        return self.policy in ("full", "selective")

    def label(self) -> str:
        """A short name for people and for Optuna's categories, one to one with the treatment."""
        parts: list[str] = [self.policy]
        for name, value in self.knobs_off_default().items():
            if isinstance(value, tuple):
                parts.append(f"{name}={'+'.join(value) or '-'}")
            else:
                parts.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        return " ".join(parts)


NO_AC = Treatment("none")


@lru_cache(maxsize=4096)  # it is asked for at each layer of each plan that is predicted
def _canonical(treatment: Treatment) -> Treatment:
    return replace(
        treatment,
        wrap=tuple(sorted(treatment.wrap)),
        save_ops=tuple(sorted(set(treatment.save_ops))),
        save=tuple(sorted({str(SavedOp.parse(entry)) for entry in treatment.save})),
        filter_fqns=tuple(sorted(set(treatment.filter_fqns))),
        filter_by=treatment.filter_by if treatment.filter_fqns else "shape",
        memory_budget=None if treatment.memory_budget is None else float(treatment.memory_budget),
    )
