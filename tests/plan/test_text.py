"""Plans as TOML: what is read, what is refused and how, the canonical text and the hash."""

import pytest

from actune.errors import PlanError
from actune.plan import NO_AC, Plan, Rule, Treatment, dump_plan, load_plan, parse_plan, plan_hash
from actune.plan.text import MAX_PLAN_BYTES

LAYERS = tuple(f"layers.{i}" for i in range(12))

FULL_TEXT = """
schema = 1
compile = "layer"

[[rule]]
layers = ["layers.0-5", "layers.8"]
wrap = ["attention", "moe"]
policy = "selective"
save_every_nth_mm = 0
save_ops = ["default", "grouped_mm"]
save = ["wo::mm", ".::add#2"]
filter_fqns = ["router.gate"]
filter_by = "name"
early_stop = false
preserve_rng_state = false

[[rule]]
layers = ["*"]
policy = "memory_budget"
memory_budget = 0.5

[provenance]
study = "mine"
"""


def test_every_key():
    assert parse_plan(FULL_TEXT) == Plan(
        (
            Rule(
                ("layers.0-5", "layers.8"),
                Treatment(
                    "selective",
                    wrap=("attention", "moe"),
                    save_every_nth_mm=0,
                    save_ops=("default", "grouped_mm"),
                    save=("wo::mm", ".::add#2"),
                    filter_fqns=("router.gate",),
                    filter_by="name",
                    early_stop=False,
                    preserve_rng_state=False,
                ),
            ),
            Rule(("*",), Treatment("memory_budget", memory_budget=0.5)),
        ),
        "layer",
    )
    assert parse_plan(FULL_TEXT).provenance == {"study": "mine"}


def test_defaults():
    text = 'schema = 1\n[[rule]]\nlayers = ["a"]\npolicy = "selective"\nsave_ops = "default"\n'
    assert parse_plan(text) == Plan((Rule(("a",), Treatment("selective")),))
    assert parse_plan("schema = 1") == Plan()


def rule(keys, policy="selective", head="schema = 1"):
    return f'{head}\n[[rule]]\nlayers = ["layers.*"]\npolicy = "{policy}"\n{keys}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema =", r"^the plan is not TOML: Invalid value"),
        ("", r"^the plan: schema: None is not a version .* Expected schema 1\."),
        ("schema = 2", r"schema: 2 is not a version"),
        ("schema = true", r"schema: True is not a version"),
        (
            'schema = 1\ncompile = "fast"',
            r"compile: .*'off', 'inside', 'layer', 'model', .* or 'inside\+ops' \(got 'fast'\)",
        ),
        ("schema = 1\ncompiled = true", r"unknown key 'compiled'\. Did you mean 'compile'\? Known keys: compile, rule"),
        ('schema = 1\n[[rule]]\npolicy = "full"', r"rule\.1\.layers: Field required"),
        (
            'schema = 1\n[[rule]]\nlayers = []\npolicy = "full"',
            r"rule 1: layers: the list is empty\. Name at least one",
        ),
        (rule("", "best"), r"rule\.1\.policy: .*'none', 'full', 'selective' or 'memory_budget' \(got 'best'\)"),
        (rule("save_evry_nth_mm = 2"), r"unknown key 'save_evry_nth_mm'\. Did you mean 'save_every_nth_mm'\?"),
        (rule("save_every_nth_mm = -1"), r"rule 1: save_every_nth_mm: -1 is negative\. Expected 0, 1, 2, …"),
        (rule("save_every_nth_mm = 2.0"), r"save_every_nth_mm: .*integer \(got 2\.0\)"),
        (rule("save_every_nth_mm = true"), r"save_every_nth_mm: .*integer \(got True\)"),
        (rule('save_ops = ["m m"]'), r"save_ops: 'm m' is not the name of an op or of a set of ops"),
        (rule('save = ["mm"]'), r"save: 'mm' does not name an op output\. Expected <module FQN .* attention\.wo::mm"),
        (rule('save = ["a::mm#0"]'), r"save: 'a::mm#0' does not name an op output"),
        (rule('save = ["a::add_"]'), r"save: 'a::add_' names an op that writes in place\. Name the op whose output"),
        (rule('filter_fqns = ["."]'), r"filter_fqns: '\.' would match every module\. Name Linears"),
        (rule('filter_by = "size"'), r"rule\.1\.filter_by: .*'shape' or 'name' \(got 'size'\)"),
        (rule('early_stop = "no"'), r"early_stop: .*boolean \(got 'no'\)"),
        (rule("wrap = []"), r'wrap: the list is empty\. Name at least one module; "\." is the layer itself'),
        (rule('wrap = ["a..b"]'), r"wrap: 'a\.\.b' is not a FQN below the layer, such as attention"),
        (rule('wrap = [".", "a"]'), r"wrap: 'a' lies inside '\.'\. A module can be in one region only"),
        (rule('wrap = ["a", "a.b"]'), r"wrap: 'a\.b' lies inside 'a'"),
        (rule('wrap = ["a", "a"]'), r"wrap: 'a' stands twice"),
        (rule("save = []", "full"), r'save: has no effect with policy = "full", which takes early_stop, preserve_rng'),
        (rule("early_stop = true", "none"), r'early_stop: has no effect with policy = "none", .* Remove it\.'),
        (rule("", "memory_budget", 'schema = 1\ncompile = "layer"'), r"memory_budget: None is no share of the activa"),
        (rule("memory_budget = 1.5", "memory_budget"), r"memory_budget: 1\.5 is no share .* from 0 \(keep nothing\)"),
        (rule("memory_budget = nan", "memory_budget"), r"memory_budget: nan is no share"),
        (rule("memory_budget = 0.5", "memory_budget"), r'but compile = "off"\. Set compile = "layer" or "model"'),
        (rule("", head='schema = 1\ncompile = "inside"'), r"can't see the ops of a region that is compiled inside"),
    ],
)
def test_what_is_refused_names_key_value_and_advice(text, message):
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


def test_two_budgets_in_one_graph():
    budgets = (Treatment("memory_budget", memory_budget=share) for share in (0.5, 0.2))
    with pytest.raises(
        PlanError, match=r'memory_budget: \[0\.2, 0\.5\] in one plan with compile = "model": .* Use one'
    ):
        Plan(tuple(Rule((f"a.{i}",), budget) for i, budget in enumerate(budgets)), "model")


def test_files(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(FULL_TEXT, encoding="utf-8")
    assert load_plan(path) == load_plan(str(path)) == parse_plan(FULL_TEXT)
    with pytest.raises(PlanError, match=r"plan .*none\.toml can't be read: No such file"):
        load_plan(tmp_path / "none.toml")
    with pytest.raises(PlanError, match=r"plan .* can't be read: Is a directory"):
        load_plan(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match=r"plan\.toml is not UTF-8 text"):
        load_plan(path)
    path.write_text("#" * (MAX_PLAN_BYTES + 1), encoding="utf-8")
    with pytest.raises(PlanError, match=f"has {MAX_PLAN_BYTES + 1} bytes; at most {MAX_PLAN_BYTES} are read"):
        load_plan(path)
    path.write_text(rule('save = ["mm"]'), encoding="utf-8")
    with pytest.raises(PlanError, match=r"plan\.toml: rule 1: save: 'mm' does not"):
        load_plan(path)


PLANS = [
    Plan(),
    parse_plan(FULL_TEXT),
    Plan((Rule(("layers.*",), Treatment("full", wrap=("a", "b"), early_stop=False)), Rule(("x",), NO_AC)), "model"),
    Plan((Rule(("layers.0-3",), Treatment("selective", save_ops=())),)),
    Plan((Rule(("layers.0",), Treatment("memory_budget", memory_budget=0.1)),), "layer", {"device": "cpu", "peak": 1}),
]


@pytest.mark.parametrize("plan", PLANS, ids=Plan.describe)
def test_dumping_and_parsing_are_inverse(plan):
    again = parse_plan(dump_plan(plan))
    assert (again, again.provenance) == (plan, plan.provenance)
    assert dump_plan(again) == dump_plan(plan)


def test_every_knob_of_the_policy_is_written():
    text = dump_plan(Plan((Rule(("a",), Treatment("selective")),)))
    assert 'save_every_nth_mm = 2\nsave_ops = "default"\nearly_stop = true\npreserve_rng_state = true' in text


def test_the_hash_is_of_what_is_done():
    plan = parse_plan(FULL_TEXT)
    assert plan_hash(plan) == plan_hash(parse_plan(FULL_TEXT.replace('"mine"', '"yours"')))
    assert plan_hash(plan) != plan_hash(parse_plan(FULL_TEXT.replace("#2", "#1")))
    assert len({plan_hash(plan) for plan in PLANS}) == len(PLANS)
    assert plan_hash(Plan()) == "ff8d02f3c22ce681"


def test_the_canonical_plan_of_a_model():
    many = Plan(
        (
            Rule(("layers.0", "layers.1"), Treatment("full")),
            Rule(("layers.2-3",), Treatment("full")),
            Rule(("layers.0-11",), NO_AC),
            Rule(("layers.*",), Treatment("selective")),
        )
    )
    few = Plan((Rule(("layers.0-3",), Treatment("full")),))
    assert many.canonical_for(LAYERS) == few == few.canonical_for(LAYERS)
    assert plan_hash(many) != plan_hash(few)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"wrap": ("b", "a")}, {"wrap": ("a", "b")}),
        ({"save": ("a::mm", "a::mm", "b::mm")}, {"save": ("b::mm", "a::mm")}),
        ({"save": ("a::mm#01",)}, {"save": ("a::mm#1",)}),
        ({"save_ops": ("mm", "default")}, {"save_ops": ("default", "mm", "mm")}),
        ({"filter_fqns": ("b", "a")}, {"filter_fqns": ("a", "b")}),
        ({"filter_by": "name"}, {}),
    ],
)
def test_treatments_that_do_the_same_have_one_canonical_form(one, other):
    plans = [
        Plan((Rule(("layers.*",), Treatment("selective", **knobs)),)).canonical_for(LAYERS) for knobs in (one, other)
    ]
    assert plans[0] == plans[1]
    assert plan_hash(plans[0]) == plan_hash(plans[1])
    assert plans[0].canonical_for(LAYERS) == plans[0]


def test_a_whole_number_of_a_budget():
    whole, decimal = (
        Plan((Rule(("a",), Treatment("memory_budget", memory_budget=share)),), "layer").canonical_for(["a"])
        for share in (1, 1.0)
    )
    assert plan_hash(whole) == plan_hash(decimal)


def test_describe():
    assert Plan().describe() == "no AC"
    assert parse_plan(rule("save_every_nth_mm = 1", head='schema = 1\ncompile = "model"')).describe() == (
        "layers.*: selective save_every_nth_mm=1; compile=model"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Treatment("best"),
            r"policy: 'best' is not a policy\. Expected one of: none, full, selective, memory_b",
        ),
        (lambda: Treatment("none", early_stop=False), r'early_stop: False has no effect with policy = "none"\. Remove'),
        (
            lambda: Treatment("full", save=("a::mm",)),
            r"save: \('a::mm',\) has no effect .* takes: early_stop, preserve",
        ),
        (lambda: Treatment("selective", filter_by="size"), r"filter_by: 'size' is neither \"shape\" nor \"name\""),
        (lambda: Plan((), "fast"), r"compile: 'fast' is not known\. Expected one of: off, inside, layer, model"),
    ],
)
def test_what_python_makes_is_checked_too(make, message):
    with pytest.raises(PlanError, match=message):
        make()
