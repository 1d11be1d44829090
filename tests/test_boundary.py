from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import Field

from actune.boundary import OutsideModel, from_json, shorten, take_schema, to_json, unknown_key_message, validate
from actune.errors import PlanError, UsageError
from actune.racing import Race
from actune.records import (
    Failed,
    Loaded,
    Measured,
    Measurement,
    MeasurePlan,
    Outcome,
    Reply,
    Request,
    SamplePair,
    StepSample,
)


class Inner(OutsideModel):
    size: int
    mode: Literal["a", "b"] = "a"


class Outer(OutsideModel):
    name: str
    share: float = 0.5
    rows: list[Inner] = Field(default_factory=list)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": 5}, r"file x: name: Input should be a valid string \(got 5\)\."),
        ({"name": "n", "share": "0.5"}, r"share: Input should be a valid number \(got '0\.5'\)"),
        ({"name": "n", "share": True}, r"share: Input should be a valid number \(got True\)"),
        ({}, r"file x: name: Field required\."),
        ({"name": "n", "nane": 1}, r"unknown key 'nane'\. Did you mean 'name'\? Known keys: name, share, rows"),
        ({"name": "n", "zzz": 1}, r"unknown key 'zzz'\. Known keys: name, share, rows"),
        ({"name": "n", "rows": [{"size": 1}, {"size": 1.5}]}, r"rows\.2\.size: .*valid integer \(got 1\.5\)"),
        ({"name": "n", "rows": [{"size": 1, "mode": "c"}]}, r"rows\.1\.mode: .*'a' or 'b' \(got 'c'\)"),
        ({"name": "n", "rows": {"size": 1}}, r"rows: Input should be a valid list \(got \{'size': 1\}\)"),
        ([1], r"file x: .*\(got \[1\]\)"),
    ],
)
def test_messages_name_the_key_the_value_and_what_was_expected(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        validate(Outer, data, source="file x")


def test_what_fits_comes_back_as_it_is() -> None:
    outer = validate(Outer, {"name": "n", "share": 1, "rows": [{"size": 2, "mode": "b"}]}, source="file x")
    assert (outer.name, outer.share, outer.rows[0].size, outer.rows[0].mode) == ("n", 1.0, 2, "b")


def test_only_the_first_three_problems_are_told_and_none_at_length() -> None:
    rows = [{"size": "x" * 10_000}] * 50
    with pytest.raises(UsageError) as caught:
        validate(Outer, {"name": "n", "rows": rows}, source="file x")
    assert str(caught.value).count("valid integer") == 3
    assert len(str(caught.value)) < 600


def test_error_is_of_the_class_asked_for() -> None:
    with pytest.raises(PlanError):
        validate(Outer, {}, source="plan", error=PlanError)
    with pytest.raises(PlanError):
        take_schema({}, source="plan", error=PlanError)


@pytest.mark.parametrize("schema", [None, 0, 2, "1", True, [1]])
def test_schema_has_to_be_1(schema: Any) -> None:
    with pytest.raises(UsageError, match=r"file x: schema: .* is not a version .* Expected schema 1\."):
        take_schema({} if schema is None else {"schema": schema}, source="file x")


def test_schema_is_taken_out() -> None:
    table = {"schema": 1, "name": "n"}
    take_schema(table, source="file x")
    assert table == {"name": "n"}


def test_unknown_key_message_without_a_near_one() -> None:
    assert unknown_key_message("q", {"name": 1, "share": 2}) == "unknown key 'q'. Known keys: name, share"


def test_shorten() -> None:
    assert shorten("abc") == "'abc'"
    assert shorten("x" * 100, limit=10) == "'xxxxxxxx…"
    assert len(shorten(list(range(1000)))) == 80


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Request, MeasurePlan("schema = 1\n", None, 2**40, 5)),
        (Request, MeasurePlan('# "é"\n', "schema = 1\n", None, 0)),
        (Request, MeasurePlan("schema = 1\n", "schema = 1\n", None, 5, Race(0.1 + 0.2, 0.0, 1e-3, 9), peak_steps=20)),
        (Reply, Failed("target", "boom", "Traceback …\n")),
        (
            Reply,
            Measured(
                Measurement(
                    Outcome.OK, 2**60 + 1, pairs=(SamplePair(StepSample(0.1 + 0.2, 1e-9), StepSample(1.0, 2.0)),)
                ),
                worker_spent=True,
            ),
        ),
    ],
)
def test_requests_and_replies_come_back_from_one_line_of_json(kind: Any, value: Any) -> None:
    line = to_json(value)
    assert "\n" not in line
    again = from_json(kind, line)
    assert again == value
    assert type(again) is type(value)


def test_requests_and_replies_from_before_races_still_load() -> None:
    request = '{"plan_toml": "", "reference_toml": null, "budget_bytes": 7, "timed_pairs": 5, "kind": "measure"}'
    assert from_json(Request, request) == MeasurePlan("", None, 7, 5, race=None, peak_steps=2)
    reply = '{"measurement": {"outcome": "ok", "peak_bytes": 7, "pairs": []}, "kind": "measured"}'
    assert from_json(Reply, reply) == Measured(Measurement(Outcome.OK, 7, lost_race=False))


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(StepSample(float("nan"), 1.0))


@pytest.mark.parametrize("line", ["", "[]", "{", '{"kind": "measured"}', '{"kind": "nonsense"}', '{"message": "x"}'])
def test_line_that_is_no_reply_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(Reply, line)


def test_a_reply_is_not_taken_for_a_request() -> None:
    @dataclass(frozen=True)
    class Other:
        kind: Literal["loaded"] = "loaded"

    with pytest.raises(ValueError, match=r"."):
        from_json(Request, to_json(Other()))
    with pytest.raises(ValueError, match=r"."):
        from_json(Loaded, to_json(Other()))
