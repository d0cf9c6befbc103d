"""Values against types: what goes in, what comes out, and the words for what does not."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from outstation import Attribute, RequestSource, RowError, _codec, realtime_feature_view
from outstation._declarations import collecting
from outstation._evaluate import Evaluator, Failed, evaluate_rows
from outstation.types import (
    Array,
    Bool,
    Bytes,
    Field,
    Float64,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)

UTC = timezone.utc
NOON = datetime(2013, 7, 1, 12, 0, 0, 1, tzinfo=UTC)
POINT = Struct([Field("lat", Float64), Field("name", String)])


def view_of(function: Any, dtype_in: Any = Int64, dtype_out: Any = Int64) -> Any:
    with collecting():
        return realtime_feature_view(
            name="v",
            sources=[RequestSource(schema=[Field("x", dtype_in)])],
            mode="python",
            features=[Attribute("y", dtype_out)],
        )(function)


FITS = [
    # type, given, as the function sees it and the answer has it
    (Bool, True, True),
    (Int64, -(2**63), -(2**63)),
    (Float64, 1.5, 1.5),
    (Float64, 3, 3.0),
    (Float64, 2**63 - 1, float(2**63 - 1)),
    (Float64, math.inf, math.inf),
    (String, "ü", "ü"),
    (Bytes, b"\xff", b"\xff"),
    (Timestamp, NOON, NOON),
    (Array(Float64), [1, 2.5, None], [1.0, 2.5, None]),
    (Array(Array(Int64)), [[1], []], [[1], []]),
    (Map(String, Int64), {"a": 1, "": None}, {"a": 1, "": None}),
    (POINT, {"lat": 1, "name": None, "extra": 2}, {"lat": 1.0, "name": None}),
] + [(dtype, None, None) for dtype in (Bool, Int64, Float64, String, Bytes, Timestamp, POINT)]

MISFITS = [
    (Bool, 1, "must be Bool, not int 1"),
    (Int64, True, "must be Int64, not bool True"),
    (Int64, 1.0, "must be Int64, not float 1.0"),
    (Int64, "1", "must be Int64, not str '1'"),
    (Float64, True, "must be Float64, not bool True"),
    (Float64, "nan", "must be Float64, not str 'nan'"),
    (String, b"x", "must be String, not bytes b'x'"),
    (Bytes, "x", "must be Bytes, not str 'x'"),
    (Timestamp, 1.0, "must be Timestamp, not float 1.0"),
    (Array(Int64), [1, "2"], "[1] must be Int64, not str '2'"),
    (Array(Int64), {"0": 1}, "must be Array(Int64), not dict"),
    (Array(POINT), [{"lat": 1.0}], "[0]['name'] must be String, but is missing"),
    (POINT, {"lat": "x", "name": ""}, "['lat'] must be Float64, not str 'x'"),
    (Map(String, Array(Bool)), {"k": [None, 1]}, "['k'][1] must be Bool, not int 1"),
]


def served(view: Any, row: Any) -> Any:
    """Through the wire's bytes, both ways."""
    _, rows = _codec.decode_call_request(_codec.encode_call_request("v", [row]))
    (outcome,) = _codec.decode_call_response(evaluate_rows([Evaluator(view)], rows))
    return outcome


@pytest.mark.parametrize("dtype, given, expected", FITS, ids=str)
def test_values_that_fit(dtype: Any, given: Any, expected: Any) -> None:
    seen = []

    def function(source: Any) -> Any:
        seen.append(source["x"])
        return {"y": source["x"]}

    view = view_of(function, dtype, dtype)
    for outcome in (served(view, {"x": given})["v.y"], view.run({"x": given})["y"], seen[0]):
        assert outcome == expected and type(outcome) is type(expected)
    # What the function returns unconverted is converted on the way out.
    outcome = served(view_of(lambda source: {"y": given}, Int64, dtype), {"x": 0})
    assert outcome == {"v.y": expected}


@pytest.mark.parametrize("dtype, given, says", MISFITS, ids=str)
def test_values_that_do_not_fit(dtype: Any, given: Any, says: str) -> None:
    into = served(view_of(lambda source: {"y": 0}, dtype), {"x": given})
    assert into.kind == _codec.INPUT and into.function == "v"
    assert into.message.startswith("feature view 'v': field 'x'")
    assert f"field 'x'{says if says.startswith('[') else ' ' + says}" in into.message
    out = served(view_of(lambda source: {"y": given}, Int64, dtype), {"x": 0})
    assert out.kind == _codec.OUTPUT and out.function == "v"
    path, _, rest = says.partition("must")
    assert f"feature view 'v' returned feature 'y'{path.strip()}, which must{rest}" in out.message
    with pytest.raises(RowError):
        view_of(lambda source: {"y": given}, Int64, dtype).run({"x": 0})


class Strange(dict):  # type: ignore[type-arg]
    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("no")


OUTPUTS = [
    (lambda s: None, "returned NoneType None instead of a dict with y (Int64)"),
    (lambda s: [1], "returned list [1] instead of a dict"),
    (lambda s: {}, "did not return 'y'; it declares y (Int64)"),
    (lambda s: {"z": 1}, "did not return 'y'"),
    (lambda s: {"y": 1, "z": 1}, "returned 'z', which it does not declare"),
    (lambda s: {"y": 1, 2: 1}, "returned int 2, which it does not declare"),
    (lambda s: {"y": 2**63}, "9223372036854775808 is outside of 64 bits"),
    (lambda s: {"y": 10**9999}, "an integer of 33216 bits is outside of 64 bits"),
    (lambda s: Strange(y=1), "raised RuntimeError: no"),
]


@pytest.mark.parametrize("index", range(len(OUTPUTS)))
def test_results_that_are_not_what_is_declared(index: int) -> None:
    function, says = OUTPUTS[index]
    outcome = served(view_of(function), {"x": 0})
    assert outcome.kind == _codec.OUTPUT and says in outcome.message


def test_more_misfits_of_what_is_returned() -> None:
    for dtype, given, says in [
        (String, "\ud800", "surrogate"),
        (Float64, 10**400, "is too large"),
        (Timestamp, datetime(2013, 1, 1), "has no timezone: write .replace(tzinfo=timezone.utc)"),
        (Timestamp, datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "years 1 to 9999"),
        (Map(String, Int64), {1: 1}, "has the key int 1"),
    ]:
        outcome = served(view_of(lambda source: {"y": given}, Int64, dtype), {"x": 0})
        assert outcome.kind == _codec.OUTPUT and says in outcome.message


def test_what_comes_back_in_other_clothes() -> None:
    """Subclasses, tuples, other zones, other mappings."""
    from enum import IntEnum
    from types import MappingProxyType

    class Level(IntEnum):
        HIGH = 3

    zone = timezone(timedelta(hours=-5))
    for dtype, given, expected in [
        (Int64, Level.HIGH, 3),
        (Array(Int64), (1, 2), [1, 2]),
        (Bytes, bytearray(b"x"), b"x"),
        (Timestamp, NOON.astimezone(zone), NOON),
        (Map(String, Int64), MappingProxyType({"a": 1}), {"a": 1}),
    ]:
        assert served(view_of(lambda s: {"y": given}, Int64, dtype), {"x": 0}) == {"v.y": expected}
    assert served(view_of(lambda s: MappingProxyType({"y": 1})), {"x": 0}) == {"v.y": 1}


def test_numpy_and_pandas_values_are_taken() -> None:
    import numpy as np
    import pandas as pd

    for dtype, given, expected in [
        (Float64, np.float64(1.5), 1.5),
        (Float64, np.float32(1.5), 1.5),
        (Int64, np.int32(7), 7),
        (Bool, np.bool_(True), True),
        (Array(Float64), np.array([1.0, 2.0]), [1.0, 2.0]),
        (Timestamp, pd.Timestamp(NOON), NOON),
        (Timestamp, pd.NaT, None),
        (Float64, pd.NA, None),
    ]:
        assert served(view_of(lambda s: {"y": given}, Int64, dtype), {"x": 0}) == {"v.y": expected}


def test_exceptions_are_the_rows_own() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise ValueError

    def recurse(source: Any) -> Any:
        return recurse(source)

    def raising(error: BaseException) -> Any:
        def function(source: Any) -> Any:
            raise error

        return function

    for function, says in [
        (raising(ValueError("bad")), "raised ValueError: bad"),
        (raising(SystemExit(3)), "raised SystemExit: 3"),
        (raising(KeyboardInterrupt()), "raised KeyboardInterrupt"),
        (raising(Rude()), "raised Rude: (its message cannot be shown)"),
        (raising(ValueError("x" * 99_999)), "xxx…"),
        (recurse, "raised RecursionError"),
        (lambda s: s["nope"], "raised KeyError: 'nope'"),
    ]:
        outcome = served(view_of(function), {"x": 0})
        assert outcome.kind == _codec.FUNCTION and says in outcome.message
        assert outcome.traceback.startswith("Traceback (most recent call last):\n")
        files = re.findall(r'File ".*?(\w+\.py)"', outcome.traceback)
        assert set(files) == {"test_evaluate.py"}
        assert len(outcome.message) <= 2000 and len(outcome.traceback) <= 10_100


def test_a_failing_batch_keeps_the_first_tracebacks() -> None:
    view = view_of(lambda source: 1 / 0)
    outcomes = _codec.decode_call_response(evaluate_rows([Evaluator(view)], [{"x": 0}] * 50))
    assert [bool(outcome.traceback) for outcome in outcomes] == [True] * 16 + [False] * 34


def test_a_service_answers_whole_or_names_the_view_that_failed() -> None:
    def view(name: str, function: Any) -> Evaluator:
        with collecting():
            return Evaluator(
                realtime_feature_view(
                    name=name,
                    sources=[RequestSource(schema=[Field("x", Array(Int64))])],
                    mode="python",
                    features=[Attribute("y", Int64)],
                )(function)
            )

    # The first view empties the list that it gets: the second must not notice.
    first = view("first", lambda s: {"y": s["x"].clear() or 1})
    second = view("second", lambda s: {"y": s["x"][0]})
    entered = []
    rows = [{"x": [5]}, {"x": []}, {}]
    outcomes = _codec.decode_call_response(evaluate_rows([first, second], rows, entered.append))
    assert outcomes[0] == {"first.y": 1, "second.y": 5}
    assert (outcomes[1].kind, outcomes[1].function) == (_codec.FUNCTION, "second")
    assert (outcomes[2].kind, outcomes[2].function) == (_codec.INPUT, "first")
    assert "needs field 'x' (Array(Int64)), which the row lacks; its fields: none" in outcomes[2].message
    assert entered == ["first", "second", "first", "second", "first"]


def test_a_failure_carries_facts() -> None:
    with pytest.raises(Failed) as caught:
        Evaluator(view_of(lambda s: {"y": 1})).evaluate({"z": 1})
    assert caught.value.failure.kind == _codec.INPUT
    assert caught.value.failure.message.endswith("its fields: z")
