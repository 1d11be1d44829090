"""Plans: what every layer of a model gets. Plain values; nothing here imports torch."""

from actune.plan.patterns import compress_fqns, compress_fqns_text
from actune.plan.plan import COMPILE_MODES, CompileMode, Plan, Rule, misfit
from actune.plan.text import dump_plan, load_plan, parse_plan, plan_hash
from actune.plan.treatment import NO_AC, POLICIES, WHOLE_LAYER, PolicyName, SavedOp, Treatment

__all__ = [
    "COMPILE_MODES",
    "NO_AC",
    "POLICIES",
    "WHOLE_LAYER",
    "CompileMode",
    "Plan",
    "PolicyName",
    "Rule",
    "SavedOp",
    "Treatment",
    "compress_fqns",
    "compress_fqns_text",
    "dump_plan",
    "load_plan",
    "misfit",
    "parse_plan",
    "plan_hash",
]
