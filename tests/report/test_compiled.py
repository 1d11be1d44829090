"""What documents and warnings say of compiled code."""

from __future__ import annotations

import pytest

from actune.plan import Plan, Rule, Treatment
from actune.records import CompiledCode, Measurement, Outcome
from actune.report import compile_warnings, compiled_part, short_fqns

BREAK = "moe.py:12: Dynamic shape operator"


def plan(*wrap: str, compile: str = "layer") -> Plan:
    return Plan((Rule(("layers.*",), Treatment("full", wrap=wrap or (".",))),), compile)  # type: ignore[arg-type]


def entry(*eager: str, breaks: tuple[str, ...] = (BREAK,), flex: str | None = None) -> dict[str, object]:
    code = CompiledCode(breaks, eager, flex)  # type: ignore[arg-type]
    return compiled_part(Measurement(Outcome.OK, 1, compile_s=2.5, compiled_code=code))


def test_a_part_has_every_key_whatever_is_known() -> None:
    known = entry("layers.0", flex="eager")
    assert known == {
        "compile_s": 2.5,
        "graph_breaks": 1,
        "graph_break_places": [BREAK],
        "eager_fqns": ["layers.0"],
        "flex_attention": "eager",
    }
    assert compiled_part(Measurement(Outcome.OK)) == dict.fromkeys(known)


@pytest.mark.parametrize(
    ("wrap", "eager", "advice"),
    [
        ((), ("layers.0", "layers.1"), r"^layers\.0-1 ran eagerly .* moe\.py:12: Dynamic.*Wrap attention and MoE"),
        (
            ("attention", "moe"),
            ("layers.0.moe",),
            r"^layers\.0\.moe ran eagerly .*What lies outside of them is compiled",
        ),
    ],
)
def test_a_wrapper_that_makes_a_region_eager_is_named_with_what_to_do(
    wrap: tuple[str, ...], eager: tuple[str, ...], advice: str
) -> None:
    (warning,) = compile_warnings(entry(*eager), plan(*wrap))
    with pytest.raises(ValueError, match=advice):
        raise ValueError(warning)


def test_other_warnings_are_for_what_they_say() -> None:
    assert compile_warnings(entry(breaks=()), plan()) == []
    assert compile_warnings(entry(flex="compiled"), plan()) == []
    assert compile_warnings(compiled_part(Measurement(Outcome.OK)), plan()) == []
    (flex,) = compile_warnings(entry(flex="both"), plan())
    assert flex.startswith("FlexAttention ran eagerly in some layers")
    (given_up,) = compile_warnings(entry("layers.0", breaks=()), plan())
    assert "the compiler gave them up" in given_up
    (many,) = compile_warnings(entry("layers.0", breaks=tuple(f"a.py:{n}: x" for n in range(5))), plan())
    assert "a.py:2: x and 2 more places" in many


def test_modules_of_several_layers_are_named_together() -> None:
    fqns = ("layers.0.moe", "layers.1.moe", "layers.3.moe", "layers.3.attention.wq", "head")
    assert short_fqns(fqns) == "layers.0-1.moe, layers.3.moe, layers.3.attention.wq, head"
    assert short_fqns(("",)) == "the model"
