"""Whatever a text is, it is a value or an error of actune's; valid plans come back from their own text."""

from __future__ import annotations

import random
from contextlib import suppress

import bad_input
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD_TEXTS

from actune import tomldoc
from actune.boundary import from_json, to_json
from actune.config import MAX_YAML_VALUES, parse_space
from actune.device_spec import parse_device_spec
from actune.errors import ActuneError, PlanError, UsageError
from actune.plan import Plan, Rule, Treatment, dump_plan, parse_plan, plan_hash
from actune.plan.patterns import LayerPattern, compress_fqns
from actune.plan.treatment import SavedOp
from actune.records import Failed, Reply, ReplyLine, Request
from actune.target_spec import parse_target_spec
from actune.units import Budget, format_bytes, format_duration, parse_duration_s

TEXTS = st.one_of(
    st.text(max_size=60), st.sampled_from(ODD_TEXTS), st.text(alphabet="0123456789.%-eEGBsmhd, ", max_size=30)
)
NAMES = st.text(alphabet="abc_09-", min_size=1, max_size=8)
LISTS = st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple)
STRINGS = st.text(max_size=30).filter(lambda text: text.strip("."))

FULL = st.builds(Treatment, st.just("full"), wrap=LISTS, early_stop=st.booleans(), preserve_rng_state=st.booleans())
SELECTIVE = st.builds(
    Treatment,
    st.just("selective"),
    wrap=LISTS,
    save_every_nth_mm=st.integers(0, 2**40),
    save=st.lists(
        st.builds(lambda fqn, n: str(SavedOp(fqn, "mm", n)), NAMES, st.none() | st.integers(1, 9)), max_size=3
    ).map(tuple),
    filter_fqns=st.lists(STRINGS, max_size=3).map(tuple),
    filter_by=st.sampled_from(("shape", "name")),
    save_routing=st.booleans(),
)
SHARES = st.builds(Treatment, st.just("memory_budget"), memory_budget=st.floats(0, 1))
PLAIN = st.recursive(
    st.none().filter(lambda _: False)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
PLANS = st.builds(
    Plan,
    st.lists(st.builds(Rule, LISTS, FULL | SELECTIVE), max_size=3).map(tuple),
    st.sampled_from(("off", "layer", "model")),
    st.dictionaries(st.text(max_size=9), PLAIN, max_size=3),
) | st.builds(Plan, st.lists(st.builds(Rule, LISTS, FULL | SHARES), max_size=3).map(tuple), st.just("layer"))


@given(PLANS)
def test_plan_comes_back_from_its_text(plan: Plan) -> None:
    text = dump_plan(plan)
    read = parse_plan(text)
    assert (read, dict(read.provenance)) == (plan, dict(plan.provenance))
    assert dump_plan(read) == text
    assert plan_hash(read) == plan_hash(plan)


@pytest.mark.parametrize(
    "read",
    [
        parse_plan,
        lambda text: parse_space(text, name="s"),
        lambda text: parse_space(f"schema: 1\nmenu:\n  - {text}", name="s"),
        lambda text: parse_plan(f"schema = 1\n[[rule]]\nlayers = [{text!r}]\npolicy = 'full'").canonical_for(
            bad_input.FQNS
        ),
        lambda text: parse_device_spec("d", text),
        lambda text: tomldoc.merge(text, {"compile": {"enable": True}}, source="s"),
        Budget.parse,
        Budget.parse_all,
        lambda text: format_duration(parse_duration_s(text)),
        lambda text: LayerPattern(text).select(bad_input.FQNS),
        lambda text: compress_fqns([text, text]),
        SavedOp.parse,
        parse_target_spec,
        lambda text: Treatment("full", wrap=(text, "a")),
    ],
    ids=lambda _: "",
)
def test_any_text_is_a_value_or_an_error(read) -> None:
    @given(TEXTS)
    def check(text: str) -> None:
        with suppress(ActuneError):
            read(text)

    check()


@pytest.mark.parametrize("kind", [Request, ReplyLine], ids=["request", "reply"])
def test_any_line_is_a_record_or_a_value_error(kind) -> None:
    @given(st.one_of(st.binary(max_size=60), TEXTS))
    def check(line: str | bytes) -> None:
        with suppress(ValueError):
            from_json(kind, line)

    check()


KINDS = ("plan", "space", "device", "pattern", "units", "request", "reply", "database", "into", "study_file", "command")


@pytest.mark.parametrize("kind", KINDS)
def test_mutations_of_what_is_valid(tmp_path_factory, monkeypatch, kind: str) -> None:
    folder = tmp_path_factory.mktemp("inputs")
    monkeypatch.chdir(folder)
    inputs = bad_input.Inputs(folder)
    for seed in range(10):
        with suppress(ActuneError):
            inputs.kinds[kind](random.Random(seed))


RULE = "schema = 1\n[[rule]]\npolicy = 'full'\nlayers = ['a']\n"


# What each of these did before is in the comment beside it.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 0x" + "f" * 5000, "whole number of 20000 bits"),  # its digits can't be printed: a ValueError
        ("schema = " + "9" * 5000, "can't be read"),  # a ValueError
        ("a = " + "[" * 100_000, "nested too deeply"),  # a RecursionError
        ("a = " + "[" * 100 + "]" * 100, "nested too deeply"),
        (".".join("a" * 200_000) + " = 1", "a key of more than 64 parts"),  # minutes
        ('"x" . ' * 70 + "a = 1", "a key of more than 64 parts"),
        ('b = {a = """x"""", ' + ".".join("a" * 70) + " = 1}", "a key of more than 64 parts"),
        ("schema = 1\nrule = [" + "{layers=['a'],policy='none'}," * 5000 + "]", "at most 4096"),
        (RULE + f"wrap = {[f'x{n}' for n in range(2000)]}", "at most 1000"),  # hours
    ],
)
def test_plan_without_end(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


def test_dots_in_strings_and_comments_are_no_parts_of_a_key() -> None:
    dots = "a." * 100
    document = f'# {dots}\na = \'{dots}\'\nb = "{dots}"\nc = """\n{dots}"""\n'
    document += f"d = '''{dots}'''\ne = [1.5, {'2.5, ' * 90}]\n"
    assert tomldoc.read(document, source="s")["d"] == dots


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
MERGED = "m0: &m0 {a: b}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, f"more than {MAX_YAML_VALUES} values"),  # all of the memory
        (MERGED, f"more than {MAX_YAML_VALUES} values"),
        ("a: &a [*a]", "an alias stands within what it stands for"),
        ("a: &a {b: *a}", "an alias stands within what it stands for"),
        ("a: 1" + ":1" * 100_000 + ".5", "can't be read"),  # an OverflowError
        ("a: 0x" + "f" * 5000, "whole number of 20000 bits"),
        ("#" * (2**18 + 1), "at most 262144 are read"),
    ],
)
def test_yaml_without_end(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_space(text, name="s")


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("*" + "a*" * 400, True),
        ("*a" * 400, False),
        ("*a*" * 300 + "z", False),
        ("*.0-9." * 100 + "x", False),
        ("*.1" * 250, True),
        ("*" * 900, True),
        ("a*" + "b*" * 300 + "z", False),
    ],
)
def test_pattern_of_many_stars_matches_at_once(text: str, covered: bool) -> None:
    assert LayerPattern(text).covers("a" * 5000 + ".1" * 500) is covered


@pytest.mark.parametrize(
    ("pattern", "fqn", "covered"),
    [
        ("*.0-3.*", "blocks.7.layers.2.x", True),  # the first number is not in the range, the second is
        ("*.0-3", "a.7.b.3", True),
        ("*.0-3", "a.3.b.7", False),
        ("a*b*c", "axxbyyc", True),
        ("a*b*c", "axxcyyb", False),
        ("a*a", "a", False),
        ("*a", "a", True),
        ("0-3*", "2", False),  # no range: not a whole component
        ("*-3", "x-3", True),
        ("layers.0-3", "layers.³", False),
        ("layers.0-3", "layers." + "0" * 5000, False),
    ],
)
def test_patterns_with_stars_and_ranges(pattern: str, fqn: str, covered: bool) -> None:
    assert LayerPattern(pattern).covers(fqn) is covered


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 30, "-1E+400"])
def test_number_that_no_record_may_hold(number: str) -> None:
    with pytest.raises(ValueError, match="no finite number, and no integer of 64 bits"):
        from_json(dict[str, float], f'{{"a": {number}}}')


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "9" * 30, "0.1234567890123456789012345"])
def test_what_looks_like_such_a_number_in_a_string_is_read(text: str) -> None:
    failed = Failed("plan", f"at {text}: {text}")
    assert from_json(Reply, to_json(failed)) == failed
    assert from_json(float, "0.1234567890123456789012345") == pytest.approx(0.1234567890123)


@pytest.mark.parametrize("text", ["9" * 2000 + "GB", "1" * 200_000, "9" * 100_000 + "%", ",".join(["1GB"] * 100)])
def test_budget_of_any_length(text: str) -> None:
    with pytest.raises(UsageError):
        Budget.parse_all(text)


@pytest.mark.parametrize("text", ["1" * 200_000, "1e300", "99999999999h", "inf", "nan", "-1s"])
def test_duration_of_any_length(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration_s(text)


def test_sizes_of_64_bits_are_shown() -> None:
    assert format_bytes(2**63 - 1) == "8388608.00 TiB"
