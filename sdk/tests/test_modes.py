"""Views in both modes: every type, what the function sees and what comes back; whole services of
both; a call's context; and pandas only where it is needed."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pandas as pd
import pytest
from conftest import HEAD, PATIENCE_SECS, child_env

from outstation import (
    Attribute,
    RealtimeContext,
    RequestSource,
    RowError,
    Secret,
    SecretError,
    _codec,
    _context,
    realtime_feature_view,
)
from outstation._context import SECRETS_DIR_VARIABLE
from outstation._declarations import collecting
from outstation._evaluate import Evaluator, evaluate_rows
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
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
NAN = math.nan
STR = "str" if int(pd.__version__.split(".")[0]) >= 3 else "object"


def view_of(function: Any, dtype_in: Any = Int64, dtype_out: Any = Int64, **more: Any) -> Any:
    arguments = {"name": "v", "mode": "pandas", "features": [Attribute("y", dtype_out)], **more}
    with collecting():
        return realtime_feature_view(
            sources=[RequestSource(schema=[Field("x", dtype_in)])], **arguments
        )(function)


def served(views: Any, *rows: Any, **more: Any) -> Any:
    """Through the wire's bytes, both ways."""
    evaluators = [Evaluator(view) for view in (views if isinstance(views, list) else [views])]
    _, decoded = _codec.decode_call_request(_codec.encode_call_request("v", list(rows)))
    return _codec.decode_call_response(evaluate_rows(evaluators, decoded, **more))


def same(left: Any, right: Any) -> bool:
    """Equal, of the same type, and NaN is itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) or (left != left and right != right)


TYPES = [
    # type, values, dtype of the column, what comes back in pandas mode if that is something else
    (Bool, [True, False], "bool", None),
    (Bool, [True, None], "boolean", None),
    (Int64, [-(2**63), 2**63 - 1], "int64", None),
    (Int64, [2**63 - 1, None], "Int64", None),
    (Float64, [1.5, -0.0, math.inf, -math.inf, 5e-324], "float64", None),
    (Float64, [1.5, None, NAN], "float64", [1.5, None, None]),
    (String, ["ü", "", "\U0001f6eb", "\0"], STR, None),
    (String, ["a", None], STR, None),
    (Bytes, [b"\xff", b"", None], "object", None),
    (Timestamp, [NOON, FIRST, LAST, None], "datetime64[us, UTC]", None),
    (Array(Float64), [[1.0, None, NAN], [], None], "object", None),
    (Array(Array(Int64)), [[[1], []], [[2**63 - 1]]], "object", None),
    (Map(String, Int64), [{"a": 1, "": None}, {}, None], "object", None),
    (Struct([Field("lat", Float64)]), [{"lat": 1.0}, {"lat": None}, None], "object", None),
] + [
    (dtype, [None, None], column, None)
    for dtype, column in [
        (Bool, "boolean"),
        (Int64, "Int64"),
        (Float64, "float64"),
        (String, STR),
        (Bytes, "object"),
        (Timestamp, "datetime64[us, UTC]"),
        (Array(Int64), "object"),
    ]
]  # fmt: skip


@pytest.mark.parametrize("dtype, values, column, otherwise", TYPES, ids=str)
def test_every_type_in_both_modes(dtype: Any, values: Any, column: str, otherwise: Any) -> None:
    seen = []

    def function(source: Any) -> Any:
        seen.append(source["x"])
        return {"y": source["x"]}

    rows = [{"x": value} for value in values]
    outcomes = served(view_of(function, dtype, dtype, mode="python"), *rows)
    assert same([outcome["v.y"] for outcome in outcomes], values) and same(seen, values)

    seen.clear()
    expected = values if otherwise is None else otherwise
    view = view_of(function, dtype, dtype)
    assert same([outcome["v.y"] for outcome in served(view, *rows)], expected)
    assert len(seen) == 1 and str(seen[0].dtype) == column  # one call
    assert list(seen[0].isna()) == [value is None or value is NAN for value in values]
    assert same([outcome["y"] for outcome in view.run_batch(rows)], expected)
    frame = view_of(lambda x: x.rename(columns={"x": "y"}), dtype, dtype)
    assert same([outcome["v.y"] for outcome in served(frame, *rows)], expected)


def column_of(*values: Any, **more: Any) -> Callable[[], Any]:
    return lambda: pd.Series(list(values), **more)


RETURNED = [
    # type, column, values
    (Int64, column_of(1.0, NAN), [1, None]),  # what pandas makes of integers with a gap
    (Int64, column_of(1, pd.NA, dtype="Int64"), [1, None]),
    (Int64, column_of(1, None, dtype=object), [1, None]),
    (Int64, lambda: np.array([1, 2], dtype=np.uint8), [1, 2]),
    (Int64, lambda: [np.int32(1), pd.NA], [1, None]),
    (Int64, lambda: pd.Index([1, 2]), [1, 2]),
    (Float64, column_of(1, 2), [1.0, 2.0]),
    (Float64, column_of(1.5, pd.NA, dtype="Float64"), [1.5, None]),
    (Float64, lambda: np.array([1.5, 2.5], dtype=np.float32), [1.5, 2.5]),
    (Float64, lambda: (1, NAN), [1.0, None]),
    (Bool, column_of(True, pd.NA, dtype="boolean"), [True, None]),
    (Bool, column_of(True, NAN, dtype=object), [True, None]),
    (String, column_of("a", None, dtype="string"), ["a", None]),
    (String, column_of("a", None, dtype="category"), ["a", None]),
    (String, lambda: np.array(["a", "b"]), ["a", "b"]),
    (Timestamp, column_of(NOON, None, dtype="datetime64[ns, UTC]"), [NOON, None]),
    (Timestamp, lambda: column_of(NOON, None, dtype="datetime64[ns, UTC]")().dt.as_unit("s").dt.tz_convert("America/New_York"), [NOON.replace(microsecond=0), None]),
    (Timestamp, column_of(pd.Timestamp(NOON), None, dtype=object), [NOON, None]),
    (Array(Float64), lambda: np.array([[1.0, NAN], [2.0, 3.0]]), [[1.0, NAN], [2.0, 3.0]]),
    (Array(Float64), lambda: [np.array([1.0]), None], [[1.0], None]),
    (Int64, column_of(2, 1, index=[1, 0]), [1, 2]),  # sorted by something: labels tell
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(RETURNED)))
def test_columns_in_other_clothes(index: int) -> None:
    dtype, column, expected = RETURNED[index]
    view = view_of(lambda x: {"y": column()}, Int64, dtype)
    assert same([each["v.y"] for each in served(view, {"x": 0}, {"x": 0})], expected)
    if isinstance(column(), pd.Series):
        view = view_of(lambda x: pd.DataFrame({"y": column()}), Int64, dtype)
        assert same([each["v.y"] for each in served(view, {"x": 0}, {"x": 0})], expected)


CELLS = [
    # type, values of which the second does not fit, what is said of it
    (Int64, [1, 2**63], "9223372036854775808 is outside of 64 bits"),
    (Int64, [1, -(2**63) - 1], "is outside of 64 bits"),
    (Int64, np.array([1, 2**63], dtype=np.uint64), "is outside of 64 bits"),
    (Int64, np.array([1.0, 1.5]), "must be Int64, not float 1.5"),
    (Int64, np.array([1.0, math.inf]), "must be Int64, not float inf"),
    (Int64, np.array([1.0, 2.0**60]), "must be Int64, not float 1.152921504606847e+18"),
    (Int64, [1, True], "must be Int64, not bool True"),
    (Int64, [1, "2"], "must be Int64, not str '2'"),
    (Float64, [1.0, "nan"], "must be Float64, not str 'nan'"),
    (Float64, [1.0, 10**400], "is too large"),
    (Bool, [True, 1], "must be Bool, not int 1"),
    (String, ["a", b"a"], "must be String, not bytes b'a'"),
    (String, ["a", "\ud800"], "half of a surrogate pair"),
    (Bytes, [b"a", "a"], "must be Bytes, not str 'a'"),
    (Timestamp, [NOON, 1.5], "must be Timestamp, not float 1.5"),
    (Timestamp, [NOON, datetime(2013, 1, 1)], "has no timezone"),
    (Array(Int64), [[1], [1, "2"]], "[1] in row 1, which must be Int64, not str '2'"),
    (Array(Float64), [[1], [[[[[[1.0]]]]]]], "[0] in row 1, which must be Float64, not list"),
    (Map(String, Int64), [{"a": 1}, {1: 1}], "has the key int 1"),
    (Map(String, Int64), [{"a": 1}, {"\ud800": 1}], "half of a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize("dtype, column, says", CELLS, ids=str)
def test_a_cell_that_does_not_fit_is_its_rows_own(dtype: Any, column: Any, says: str) -> None:
    good, bad = served(view_of(lambda x: {"y": column}, Int64, dtype), {"x": 0}, {"x": 0})
    assert list(good) == ["v.y"]
    assert (bad.kind, bad.function) == (_codec.OUTPUT, "v")
    assert bad.message.startswith("feature view 'v' returned feature 'y'")
    assert "in row 1" in bad.message and says in bad.message


def test_a_moment_that_python_cannot_hold() -> None:
    far = pd.Series(np.array([0, 2**62], dtype="M8[us]")).dt.tz_localize("UTC")
    good, bad = served(view_of(lambda x: {"y": far}, Int64, Timestamp), {"x": 0}, {"x": 0})
    assert good and "in row 1" in bad.message and "outside of the years 1 to 9999" in bad.message


RESULTS = [
    (lambda x: None, "returned NoneType None instead of a pandas DataFrame, or a dict of columns, with y (Int64)"),
    (lambda x: x["x"], "instead of a pandas DataFrame"),
    (lambda x: x, "did not return 'y'; it declares y (Int64)"),
    (lambda x: x.assign(y=1), "returned 'x', which it does not declare"),
    (lambda x: pd.DataFrame({"y": [1]}), "returned a frame of 1 rows for 2"),
    (lambda x: {"y": [1, 2, 3]}, "returned feature 'y' with 3 values for 2 rows"),
    (lambda x: {"y": pd.Series([1])}, "returned feature 'y' of 1 rows for 2"),
    (lambda x: {"y": 1}, "returned feature 'y' as int 1 instead of a column of 2 values"),
    (lambda x: {"y": "ab"}, "returned feature 'y' as str 'ab' instead of a column"),
    (lambda x: {"y": np.array(1)}, "as a single value instead of a column"),
    (lambda x: pd.DataFrame([[1, 1]] * 2, columns=["y", "y"]), "returned column 'y' twice"),
    (lambda x: pd.DataFrame({"y": [1, 2]}, index=["a", "b"]), "write it with .reset_index"),
    (lambda x: pd.DataFrame({"y": [1, 2]}, index=[0, 0]), "reset_index(drop=True)"),
    (lambda x: {"y": pd.Series([NOON.replace(tzinfo=None)] * 2)}, 'write .dt.tz_localize("UTC")'),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(RESULTS)))
def test_a_result_that_is_no_answer_fails_all_rows(index: int) -> None:
    function, says = RESULTS[index]
    dtype = Timestamp if "tz_localize" in says else Int64
    outcomes = served(view_of(function, Int64, dtype), {"x": 0}, {"x": 0})
    for outcome in outcomes:
        assert outcome.kind == _codec.OUTPUT
        assert says.replace("write it", "return it") in outcome.message


def test_an_exception_fails_all_rows_with_one_traceback() -> None:
    def function(x: Any) -> Any:
        raise SystemExit("no")

    outcomes = served(view_of(function), *[{"x": 0}] * 50)
    assert {(each.kind, each.message) for each in outcomes} == {
        (_codec.FUNCTION, "feature view 'v' raised SystemExit: no")
    }
    assert len({each.traceback for each in outcomes[:16]}) == 1
    assert 'raise SystemExit("no")' in outcomes[0].traceback
    assert "_pandas" not in outcomes[0].traceback and "_evaluate.py" not in outcomes[0].traceback.replace("test_", "")
    assert {each.traceback for each in outcomes[16:]} == {""}


def test_rows_that_do_not_fit_stay_out_of_the_frame() -> None:
    frames = []

    def function(x: Any) -> Any:
        frames.append(list(x["x"]))
        return {"y": x["x"] * 2}

    outcomes = served(view_of(function), {"x": 1}, {"x": "2"}, {}, {"x": 4})
    assert frames == [[1, 4]]
    assert outcomes[0] == {"v.y": 2} and outcomes[3] == {"v.y": 8}
    assert "field 'x' must be Int64, not str '2'" in outcomes[1].message
    assert "needs field 'x' (Int64)" in outcomes[2].message
    assert {each.kind for each in outcomes[1:3]} == {_codec.INPUT}
    # Of what is returned, the row is that of the request.
    outcomes = served(view_of(lambda x: {"y": [1, "a"]}), {}, {"x": 1}, {"x": 2})
    assert outcomes[1] == {"v.y": 1} and "in row 2" in outcomes[2].message
    assert [each.kind for each in served(view_of(function), {}, {})] == [_codec.INPUT] * 2


def test_a_service_of_both_modes() -> None:
    calls = []

    def frames(x: Any) -> Any:
        calls.append(list(x["x"]))
        x["x"] = 0  # nobody else's
        return {"y": [each if each != 3 else "three" for each in calls[-1]]}

    first = view_of(lambda x: {"y": 10 // x["x"]}, name="first", mode="python")
    second = view_of(frames, name="second")
    third = view_of(lambda x: {"y": x["x"]}, name="third", mode="python")
    entered = []
    outcomes = served([first, second, third], *({"x": n} for n in (1, 0, 3, 5)), entering=entered.append)
    assert calls == [[1, 3, 5]]
    assert outcomes[0] == {"first.y": 10, "second.y": 1, "third.y": 1}
    assert (outcomes[1].kind, outcomes[1].function) == (_codec.FUNCTION, "first")
    assert (outcomes[2].kind, outcomes[2].function) == (_codec.OUTPUT, "second")
    assert outcomes[3] == {"first.y": 2, "second.y": 5, "third.y": 5}
    assert entered == ["first"] * 4 + ["second"] + ["third"] * 2


def test_a_batch_by_hand() -> None:
    view = view_of(lambda x: x.rename(columns={"x": "y"}))
    assert view.run({"x": 1}) == {"y": 1} and view.run_batch([]) == []
    good, bad = view.run_batch([{"x": 1}, {"x": 2**63}])
    assert good == {"y": 1} and isinstance(bad, RowError) and bad.kind == "input"
    with pytest.raises(TypeError, match="must be a list of dicts"):
        view.run_batch({"x": 1})
    assert view_of(lambda x: {"y": x["x"]}, mode="python").run_batch([{"x": 1}]) == [{"y": 1}]


@pytest.mark.parametrize("mode", ["python", "pandas"])
def test_the_context(mode: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(SECRETS_DIR_VARIABLE, str(tmp_path))
    (tmp_path / "key").write_text("s3cret\n")
    seen = []

    def function(x: Any, context: Any) -> Any:
        seen.append((context.request_timestamp, context.traceparent, context.secrets["key"]))
        assert "s3cret" not in repr(context) + repr(context.secrets) + str(vars(type(context)))
        return {"y": x["x"]}

    view = view_of(function, mode=mode, secrets=[Secret("key"), Secret("absent")])
    evaluator = Evaluator(view)
    assert evaluator.takes_context and evaluator.mode == mode
    micros = 1_372_680_000_000_001
    assert served(view, {"x": 1}, request_time_us=micros, traceparent="00-1") == [{"v.y": 1}]
    assert seen.pop() == (NOON, "00-1", "s3cret")
    before = datetime.now(UTC)
    assert view.run({"x": 1}) == {"y": 1}
    at, trace, _ = seen.pop()
    assert before <= at.replace(microsecond=at.microsecond) and at.utcoffset().total_seconds() == 0 and trace is None
    given = RealtimeContext(request_timestamp=NOON, secrets={"key": "given"}, traceparent="t")
    assert view.run({"x": 1}, context=given) == {"y": 1} and seen == [(NOON, "t", "given")]
    with pytest.raises(TypeError, match="a datetime with a timezone"):
        RealtimeContext(request_timestamp=datetime(2013, 1, 1))

    def leak(x: Any, context: Any) -> Any:
        raise ValueError(f"401 for key={context.secrets['key']}")

    (outcome,) = served(view_of(leak, mode=mode, secrets=[Secret("key")]), {"x": 1})
    assert "401 for key=***" in outcome.message and "s3cret" not in outcome.message + outcome.traceback


def test_secrets_that_cannot_be_had(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    (tmp_path / "folder").mkdir()

    def says(name: str) -> str:
        view = view_of(
            lambda x, context: {"y": len(context.secrets[name])},
            mode="python",
            secrets=[Secret(each) for each in ("absent", "binary", "large", "folder")],
        )
        (outcome,) = served(view, {"x": 1})
        assert outcome.kind == _codec.FUNCTION and "raised SecretError: " in outcome.message
        return str(outcome.message)

    monkeypatch.delenv(SECRETS_DIR_VARIABLE, raising=False)
    assert f"set {SECRETS_DIR_VARIABLE} to a folder with a file 'absent'" in says("absent")
    monkeypatch.setenv(SECRETS_DIR_VARIABLE, str(tmp_path))
    assert f"put its value into the file {tmp_path}/absent" in says("absent")
    assert "is not declared by feature view 'v'" in says("other") and "Secret('other')" in says("other")
    assert "is not UTF-8" in says("binary") and "larger than 65536 bytes" in says("large")
    assert "Is a directory" in says("folder")
    # A server that clears its workers' environment says it directly.
    _context.use_secrets_dir("/nowhere")
    try:
        assert "put its value into the file /nowhere/absent" in says("absent")
    finally:
        _context.use_secrets_dir(None)
    assert issubclass(SecretError, LookupError)


def test_a_source_may_be_called_context() -> None:
    view = view_of(lambda context: {"y": context["x"]}, mode="python")
    assert not view.takes_context and view.run(context={"x": 1}) == {"y": 1}
    assert view_of(lambda x, *, context: {"y": 1}, mode="python").takes_context
    with pytest.raises(TypeError, match="one dict for each of x$"):
        view_of(lambda x: {"y": 1}, mode="python").run({"x": 1}, context=RealtimeContext())


SPEEDS = """
SCHEMA = [Field("distance", Float64), Field("air_time", Float64), Field("carrier", String)]
FEATURES = [Attribute("mph", Float64), Attribute("regional", Bool)]

@realtime_feature_view(sources=[RequestSource(schema=SCHEMA)], mode="pandas", features=FEATURES)
def speeds(flights, context):
    print(len(flights), "flights at", context.request_timestamp.tzname())
    import pandas as pd
    return pd.DataFrame({
        "mph": flights["distance"] / flights["air_time"] * 60,
        "regional": flights["carrier"].isin(["9E", "EV"]),
    })

@realtime_feature_view(sources=[RequestSource(schema=SCHEMA)], mode="python", features=FEATURES)
def speed(flight):
    minutes = flight["air_time"]
    return {
        "mph": None if minutes is None else flight["distance"] / minutes * 60,
        "regional": flight["carrier"] in ("9E", "EV"),
    }
"""


def test_a_worker_answers_the_same_in_both_modes(folder: Callable[..., Path], worker: Any) -> None:
    process = worker(folder(features=HEAD + SPEEDS))
    rows = [
        {"distance": 1400.0, "air_time": 227.0, "carrier": "UA"},
        {"distance": 229.0, "air_time": None, "carrier": "EV"},
        {"distance": 944.0, "air_time": 150.0, "carrier": "9E"},
    ]
    frames, dicts = process.call("speeds", *rows), process.call("speed", *rows)
    for left, right in zip(frames, dicts):
        mph = right["speed.mph"]
        assert left == {
            "speeds.mph": None if mph is None else pytest.approx(mph),
            "speeds.regional": right["speed.regional"],
        }
    assert [line["text"] for _, line in process.logs if line["function"] == "speeds"] == ["3 flights at UTC"]


VIEW = """
@realtime_feature_view(sources=[RequestSource(schema=[Field("x", Int64)])], mode="MODE",
                       features=[Attribute("y", Int64)])
def NAME(source):
    return {"y": source["x"]}
"""


def test_pandas_is_needed_by_those_alone_that_use_it(folder: Callable[..., Path], tmp_path: Path) -> None:
    both = VIEW.replace("MODE", "pandas").replace("NAME", "frames")
    both += VIEW.replace("MODE", "python").replace("NAME", "rows")
    script = (
        "import sys; from outstation.declare import declared, manifest; from outstation._evaluate import Evaluator\n"
        f"loaded = declared({str(tmp_path)!r}); manifest(loaded)\n"
        "frames, rows = loaded.views\n"
        "print(rows.run({'x': 1})); assert 'pandas' not in sys.modules\n"
        "try: Evaluator(frames)\n"
        "except ImportError as error: print(error)\n"
    )
    folder(features=HEAD + both)
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],  # without site-packages
        env=child_env(), capture_output=True, text=True, timeout=PATIENCE_SECS, cwd="/",
    )  # fmt: skip
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "{'y': 1}"
    assert "feature view 'frames' has mode=\"pandas\", and pandas cannot be imported" in second
    assert "add pandas to the requirements of its environment" in second
