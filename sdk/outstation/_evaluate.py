"""Evaluates feature views over rows: inputs checked, function called, result checked and encoded.

What a view needs for a row is compiled once; then a row costs a loop over its fields, the call,
and a loop over its features. Whatever goes wrong in a row is that row's `RowFailure`. Views in
pandas mode get all rows of a request in one call, through `_pandas`.
"""

from __future__ import annotations

import os
import traceback
from datetime import datetime, timezone
from time import perf_counter_ns, time_ns
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from . import _codec
from ._checks import shown
from ._codec import EPOCH, FUNCTION, INPUT, INT64_MAX, INT64_MIN, OUTPUT, CodecError, RowFailure
from ._context import PARAMETER, RealtimeContext, redacted
from ._declarations import RealtimeFeatureView
from ._errors import is_ours
from ._values import Convert, Mismatch, Never, converter, exact_decoded
from .types import Bool, DataType, Float64, Int64, Timestamp

if TYPE_CHECKING:
    from ._pandas import Batch

KINDS = {INPUT: "input", FUNCTION: "function", OUTPUT: "output"}

# A message is read by a person, in a log line or a terminal.
MESSAGE_CHARS_MAX = 2000
# The newest frames tell most; a recursion of a thousand tells nothing more.
FRAMES_MAX = 20
TRACEBACK_CHARS_MAX = 8000
# A batch that fails in every row fails for the same reason: the first tracebacks tell it.
TRACEBACKS_PER_CALL = 16


class RowError(Exception):
    """Why a row has no features: of `kind` "input", "function" or "output".

    `FeatureView.run` raises it; a server answers with the same facts.
    """

    def __init__(self, failure: RowFailure) -> None:
        super().__init__(failure.message)
        self.kind = KINDS[failure.kind]
        self.function = failure.function
        self.message = failure.message
        self.traceback = failure.traceback


class Failed(Exception):
    """Inside this file and the worker: a row's failure on its way up."""

    def __init__(self, failure: RowFailure) -> None:
        super().__init__(failure)
        self.failure = failure


class Evaluator:
    """One feature view, compiled. `evaluate` gives the encoded fields of the result row."""

    def __init__(self, view: RealtimeFeatureView, folder: str = "") -> None:
        self.name = view.name
        self.mode = view.mode
        self.takes_context = view.takes_context
        self._secrets = view.secrets
        self._function = view.function
        self._folder = folder
        self._sources = [
            [(f.name, exact_decoded(f.dtype), converter(f.dtype)) for f in source.schema]
            for source in view.sources
        ]
        self._types = {f.name: f.dtype for source in view.sources for f in source.schema}
        self._outputs = [
            (feature.name, _encoder(f"{view.name}.{feature.name}", feature.dtype))
            for feature in view.features
        ]
        self._converters = [(f.name, converter(f.dtype)) for f in view.features]
        self._features = {feature.name: feature.dtype for feature in view.features}
        #: Spent in the function, over all calls.
        self.function_ns = 0
        #: In pandas mode; the only place that imports pandas.
        self.batch: Optional[Batch] = None
        if view.mode == "pandas":
            from ._pandas import Batch as PandasBatch

            self.batch = PandasBatch(self, view)

    def context(self, request_time_us: int, traceparent: str) -> Optional[RealtimeContext]:
        """For one call; `None` if the function takes none. Without a time, it is now."""
        if not self.takes_context:
            return None
        micros = request_time_us or time_ns() // 1000
        return RealtimeContext.of_call(self.name, self._secrets, micros, traceparent)

    def evaluate(
        self, row: Mapping[str, Any], with_traceback: bool = True, context: Any = None
    ) -> bytes:
        """Raises `Failed`."""
        result = self._call(self.inputs(row), with_traceback, context)
        outputs = self._outputs
        if type(result) is not dict or len(result) != len(outputs):
            result = self._shape(result)
        name = ""
        try:
            return b"".join([encode(result[name]) for name, encode in outputs])
        except BaseException as error:
            self._bad_output(result, error)

    def values(self, sources: Sequence[Mapping[str, Any]], context: Any) -> Dict[str, Any]:
        """The features as Python values, from one dict for each source. Raises `Failed`."""
        result = self._shape(self._call(self.given(sources), True, context))
        try:
            return {name: convert(result[name]) for name, convert in self._converters}
        except BaseException as error:
            self._bad_output(result, error)

    def inputs(self, row: Mapping[str, Any]) -> List[Dict[str, Any]]:
        """For each source its fields of a decoded row. Raises `Failed`."""
        return [self._source(spec, row) for spec in self._sources]

    def given(self, sources: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
        """The same of what a person gives: all values are looked at."""
        specs = [[(name, Never, convert) for name, _, convert in spec] for spec in self._sources]
        return [self._source(spec, given) for spec, given in zip(specs, sources)]

    def _source(
        self, spec: Sequence[Tuple[str, type, Convert]], row: Mapping[str, Any]
    ) -> Dict[str, Any]:
        values: Dict[str, Any] = {}
        name = ""
        try:
            for name, fits, convert in spec:
                value = row[name]
                if type(value) is not fits:
                    value = convert(value)
                values[name] = value
        except KeyError:
            has = ", ".join(sorted(map(str, row))[:20]) or "none"
            message = (
                f"feature view {self.name!r} needs field {name!r} ({self._types[name]}), "
                f"which the row lacks; its fields: {has}"
            )
            raise Failed(self.failure(INPUT, message)) from None
        except Mismatch as mismatch:
            message = f"feature view {self.name!r}: field {name!r}{mismatch.path} {mismatch.says}"
            raise Failed(self.failure(INPUT, message)) from None
        return values

    def _call(self, arguments: Sequence[Any], with_traceback: bool, context: Any) -> Any:
        started = perf_counter_ns()
        try:
            if self.takes_context:
                return self._function(*arguments, **{PARAMETER: context})
            return self._function(*arguments)
        except BaseException as error:  # SystemExit is a failed row too, not the worker's end
            message = f"feature view {self.name!r} raised {describe(error)}"
            trace = user_traceback(error, self._folder) if with_traceback else ""
            message, trace = redacted(context, message), redacted(context, trace)
            raise Failed(self.failure(FUNCTION, message, trace)) from None
        finally:
            self.function_ns += perf_counter_ns() - started

    def _shape(self, result: Any) -> Mapping[str, Any]:
        """The result as a mapping with exactly the declared names."""
        if not isinstance(result, Mapping):
            self.output(f"returned {shown(result)} instead of a dict with {self.declared()}")
        self.check_names(result)
        return result

    def check_names(self, names: Iterable[Any]) -> None:
        names = list(names)
        missing = [name for name in self._features if name not in names]
        if missing:
            self.output(
                f"did not return {', '.join(map(repr, missing))}; it declares {self.declared()}"
            )
        extra = [name for name in names if name not in self._features]
        if extra:
            texts = ", ".join(shown(name) if type(name) is not str else repr(name) for name in extra[:5])
            self.output(f"returned {texts}, which it does not declare; it declares {self.declared()}")

    def declared(self) -> str:
        return ", ".join(f"{name} ({dtype})" for name, dtype in self._features.items())

    def _bad_output(self, result: Mapping[str, Any], error: BaseException) -> NoReturn:
        """Finds out which feature it was; only failed rows pay for that."""
        self._shape(result)
        for (name, encode), (_, convert) in zip(self._outputs, self._converters):
            try:
                convert(result[name])
                encode(result[name])
            except BaseException as other:
                self.output(bad_value(name, "", other))
        self.output(f"returned a result that raised {describe(error)}")

    def output(self, says: str) -> NoReturn:
        raise Failed(self.failure(OUTPUT, f"feature view {self.name!r} {says}")) from None

    def failure(self, kind: int, message: str, trace: str = "") -> RowFailure:
        return RowFailure(kind, self.name, _cut(message, MESSAGE_CHARS_MAX), trace)


def bad_value(name: str, where: str, error: BaseException) -> str:
    """What to say of a feature's value; `where` is of a batch's row."""
    if isinstance(error, Mismatch):
        return f"returned feature {name!r}{error.path}{where}, which {error.says}"
    if isinstance(error, CodecError):
        return f"returned feature {name!r}{where}, in which {error}"
    return f"returned feature {name!r}{where}, which raised {describe(error)}"


def evaluate_rows(
    evaluators: Sequence[Evaluator],
    rows: Sequence[Any],
    entering: Callable[[str], None] = lambda name: None,
    *,
    request_time_us: int = 0,
    traceparent: str = "",
) -> bytes:
    """`CallResponse` bytes. A row has the features of all the views, or the first one's failure.

    `entering` is told the view that comes next.
    """
    contexts = [evaluator.context(request_time_us, traceparent) for evaluator in evaluators]
    if any(evaluator.batch is not None for evaluator in evaluators):
        return _by_view(evaluators, contexts, rows, entering)
    results: List[bytes] = []
    tracebacks = 0
    one = evaluators[0] if len(evaluators) == 1 else None
    for row in rows:
        try:
            if type(row) is not dict:
                raise Failed(RowFailure(INPUT, evaluators[0].name, str(row)))
            if one is not None:
                entering(one.name)
                fields = one.evaluate(row, tracebacks < TRACEBACKS_PER_CALL, contexts[0])
            else:
                parts = []
                for evaluator, context in zip(evaluators, contexts):
                    entering(evaluator.name)
                    parts.append(evaluator.evaluate(row, tracebacks < TRACEBACKS_PER_CALL, context))
                fields = b"".join(parts)
            results.append(_codec.encode_result(fields))
        except Failed as failed:
            tracebacks += bool(failed.failure.traceback)
            results.append(_codec.encode_failure(failed.failure))
    return b"".join(results)


def _by_view(
    evaluators: Sequence[Evaluator],
    contexts: Sequence[Optional[RealtimeContext]],
    rows: Sequence[Any],
    entering: Callable[[str], None],
) -> bytes:
    """The same, view after view: one of pandas mode takes all rows that are still good at once."""
    failures: Dict[int, RowFailure] = {
        index: RowFailure(INPUT, evaluators[0].name, str(row))
        for index, row in enumerate(rows)
        if type(row) is not dict
    }
    fields: List[bytes] = [b""] * len(rows)
    tracebacks = 0
    for evaluator, context in zip(evaluators, contexts):
        good = [index for index in range(len(rows)) if index not in failures]
        outcomes: List[Union[bytes, RowFailure]] = []
        if evaluator.batch is not None:
            if good:
                entering(evaluator.name)
                outcomes = evaluator.batch.encoded(good, [rows[index] for index in good], context)
        else:
            for index in good:
                entering(evaluator.name)
                try:
                    with_traceback = tracebacks < TRACEBACKS_PER_CALL
                    outcomes.append(evaluator.evaluate(rows[index], with_traceback, context))
                except Failed as failed:
                    tracebacks += bool(failed.failure.traceback)
                    outcomes.append(failed.failure)
        for index, outcome in zip(good, outcomes):
            if isinstance(outcome, RowFailure):
                failures[index] = outcome
            else:
                fields[index] += outcome
    results: List[bytes] = []
    tracebacks = 0
    for index, each in enumerate(fields):
        failure = failures.get(index)
        if failure is None:
            results.append(_codec.encode_result(each))
            continue
        tracebacks += bool(failure.traceback)
        if tracebacks > TRACEBACKS_PER_CALL:
            failure = failure._replace(traceback="")
        results.append(_codec.encode_failure(failure))
    return b"".join(results)


def run_locally(
    view: RealtimeFeatureView, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Dict[str, Any]:
    """Behind `RealtimeFeatureView.run`."""
    given, context = _arguments(view, "run", "one dict", args, kwargs)
    for name, value in zip(view.parameters, given):
        if not isinstance(value, Mapping):
            raise TypeError(f"{view.name}.run: {name} must be a dict, not {shown(value)}")
    (outcome,) = _outcomes(view, [given], context)
    if isinstance(outcome, RowError):
        raise outcome
    return outcome


def run_batch_locally(
    view: RealtimeFeatureView, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> List[Union[Dict[str, Any], RowError]]:
    """Behind `RealtimeFeatureView.run_batch`."""
    given, context = _arguments(view, "run_batch", "one list of dicts", args, kwargs)
    for name, value in zip(view.parameters, given):
        if not isinstance(value, (list, tuple)) or not all(isinstance(row, Mapping) for row in value):
            raise TypeError(f"{view.name}.run_batch: {name} must be a list of dicts, not {shown(value)}")
    if len({len(value) for value in given}) > 1:
        raise TypeError(f"{view.name}.run_batch: all sources must have the same number of rows")
    return _outcomes(view, list(zip(*given)), context)


def _arguments(
    view: RealtimeFeatureView, method: str, takes: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tuple[List[Any], Any]:
    """What is given for each source, and the context."""
    names = view.parameters
    by_name = dict(kwargs)
    context = by_name.pop(PARAMETER, None) if view.takes_context else None
    given = dict(zip(names, args))
    unknown = [name for name in by_name if name not in names or name in given]
    given.update(by_name)
    missing = [name for name in names if name not in given]
    if len(args) > len(names) or unknown or missing:
        more = f", and {PARAMETER}=RealtimeContext(…)" if view.takes_context else ""
        raise TypeError(f"{view.name}.{method} takes {takes} for each of {', '.join(names)}{more}")
    return [given[name] for name in names], context


def _outcomes(
    view: RealtimeFeatureView, rows: Sequence[Sequence[Mapping[str, Any]]], context: Any
) -> List[Union[Dict[str, Any], RowError]]:
    evaluator = Evaluator(view)
    if context is None:
        context = evaluator.context(0, "")
    outcomes: List[Union[Dict[str, Any], RowFailure]] = []
    if evaluator.batch is not None:
        outcomes = evaluator.batch.values(rows, context)
    else:
        for sources in rows:
            try:
                outcomes.append(evaluator.values(sources, context))
            except Failed as failed:
                outcomes.append(failed.failure)
    return [RowError(each) if isinstance(each, RowFailure) else each for each in outcomes]


def _encoder(key: str, dtype: DataType) -> Callable[[Any], bytes]:
    """Value to the bytes of the row's field `key`. Raises `Mismatch` or `CodecError`."""
    convert = converter(dtype)
    encode_field, varint, prefix = _codec.encode_field, _codec.varint, _codec.field_prefix
    null = encode_field(key, None)

    def general(value: Any) -> bytes:
        return encode_field(key, convert(value))

    if dtype == Float64:
        double, pack = prefix(key, b"\x19", 8), _codec.pack_double

        def encode_double(value: Any) -> bytes:
            if type(value) is float:
                return double + pack(value)
            return null if value is None else general(value)

        return encode_double
    if dtype == Bool:
        true, false = encode_field(key, True), encode_field(key, False)

        def encode_bool(value: Any) -> bytes:
            if value is True:
                return true
            if value is False:
                return false
            return null if value is None else general(value)

        return encode_bool
    if dtype == Int64:
        by_length = [prefix(key, b"\x10", length) for length in range(11)]

        def encode_int(value: Any) -> bytes:
            if type(value) is int and INT64_MIN <= value <= INT64_MAX:
                raw = varint((value << 1) ^ (value >> 63))
                return by_length[len(raw)] + raw
            return null if value is None else general(value)

        return encode_int
    if dtype == Timestamp:
        by_length = [prefix(key, b"\x30", length) for length in range(11)]
        utc = timezone.utc

        def encode_timestamp(value: Any) -> bytes:
            if type(value) is datetime and value.tzinfo is utc:
                since = value - EPOCH
                micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
                raw = varint((micros << 1) ^ (micros >> 63))
                return by_length[len(raw)] + raw
            return null if value is None else general(value)

        return encode_timestamp
    return general


def describe(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero`, whatever the exception does when asked."""
    try:
        text = str(error)
    except BaseException:
        text = "(its message cannot be shown)"
    name = type(error).__name__
    return _cut(f"{name}: {text}" if text else name, MESSAGE_CHARS_MAX)


def user_traceback(error: BaseException, folder: str) -> str:
    """The frames from the user's code on, paths relative to `folder`, bounded."""
    try:
        frames = traceback.extract_tb(error.__traceback__)
        start = next((i for i, frame in enumerate(frames) if not is_ours(frame.filename)), len(frames))
        kept = frames[start:]
        lines = ["Traceback (most recent call last):\n"]
        if len(kept) > FRAMES_MAX:
            lines.append(f"  … {len(kept) - FRAMES_MAX} frames\n")
        text = "".join(lines + traceback.format_list(kept[-FRAMES_MAX:]))
        if folder:
            text = text.replace(f'File "{os.path.join(folder, "")}', 'File "')
        return _cut(text, TRACEBACK_CHARS_MAX) + describe(error)
    except BaseException as other:
        return f"(the traceback cannot be shown: {type(other).__name__})"


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"
