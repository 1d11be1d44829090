"""The knobs of SAC resolved against one region, and what the region learns over its calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actune.ac.ops import Op, op_from_qualified_name
from actune.errors import PlanError

NamedOutput = tuple[str, str, int | None]
"""Module FQN below the region, op name, and occurrence (None for all)."""


@dataclass(frozen=True, slots=True)
class SaveRules:
    """A treatment's SAC knobs, resolved against one region.

    Attributes:
        save_every_nth_mm: as in the treatment.
        save_ops: the ops of `save_ops`.
        saved: of `save`: (module FQN below the region, op name) to its occurrences, None for all.
        filter_shapes: (in, out) of the filtered Linears, as a matmul sees its right-hand side.
        filter_modules: FQNs below the region of the Linears filtered by name.
        choosing_ops: what chooses experts, kept in any case.
        router_modules: FQNs below the region of the routers and all that is in them, whose matmuls are kept unless they
            are filtered; `.` if the region is a router.
    """

    save_every_nth_mm: int
    save_ops: frozenset[Op]
    saved: dict[tuple[str, str], frozenset[int] | None]
    filter_shapes: frozenset[tuple[int, int]]
    filter_modules: frozenset[str]
    choosing_ops: frozenset[Op] = frozenset()
    router_modules: frozenset[str] = frozenset()

    @property
    def need_module_path(self) -> bool:
        """Whether a rule asks in which module an op runs."""
        return bool(self.saved or self.filter_modules or self.router_modules)

    @property
    def followed_modules(self) -> frozenset[str] | None:
        """The modules of which a rule asks whether they run; None if it asks for each."""
        return None if self.saved else self.filter_modules | self.router_modules

    def named(self) -> set[NamedOutput]:
        """The entries of `saved`, one by one."""
        return {(*key, number) for key, numbers in self.saved.items() for number in numbers or (None,)}

    def __deepcopy__(self, memo: dict[int, Any]) -> SaveRules:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Ops can't be pickled; their names can.
        save_ops, choosing_ops = (sorted(map(str, of_kind)) for of_kind in (self.save_ops, self.choosing_ops))
        rest = (self.saved, self.filter_shapes, self.filter_modules, self.router_modules)
        return _rules_from_names, (save_ops, choosing_ops, self.save_every_nth_mm, *rest)


def _rules_from_names(
    save_ops: list[str],
    choosing_ops: list[str],
    save_every_nth_mm: int,
    saved: dict[tuple[str, str], frozenset[int] | None],
    filter_shapes: frozenset[tuple[int, int]],
    filter_modules: frozenset[str],
    router_modules: frozenset[str],
) -> SaveRules:
    kept, choosing = (frozenset(map(op_from_qualified_name, names)) for names in (save_ops, choosing_ops))
    return SaveRules(save_every_nth_mm, kept, saved, filter_shapes, filter_modules, choosing, router_modules)


@dataclass(slots=True)
class RegionMemory:
    """What a region learns over its calls.

    Attributes:
        first_call_done: the calls after the first skip what only the first needs to find out.
        writes_to_saved: an op of the region writes in place to an output that is kept, or kept as a copy.
        unmatched: entries of `save` that no op has matched so far.
        ops_seen: op names by module, of the first call, for the message about unmatched entries.
    """

    first_call_done: bool = False
    writes_to_saved: bool = False
    unmatched: set[NamedOutput] = field(default_factory=set)
    ops_seen: dict[str, set[str]] = field(default_factory=dict)

    def check_all_matched(self, region_fqn: str) -> None:
        """Raises PlanError if an entry of `save` named nothing that ran."""
        if not self.unmatched:
            return
        module_fqn, name, number = min(self.unmatched, key=str)
        entry = f"{module_fqn}::{name}" + ("" if number is None else f"#{number}")
        ran = ", ".join(sorted(self.ops_seen.get(module_fqn, ()))) or "none"
        raise PlanError(
            f"save: no op matched '{entry}' when {region_fqn} ran"
            f"{'' if number is None else ' (or not as often as its number says)'}. Ops that ran in '{module_fqn}': "
            f"{ran}. Name one of them, or leave the entry out."
        )
