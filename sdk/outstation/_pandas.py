"""Views in pandas mode: rows to frames, one call, and the columns that come back to rows.

What a column is for each type, and what may be returned for it, is the table in sdk/README.md. A
null of a row is what pandas calls missing, and what pandas calls missing is null in the answer.
"""

from __future__ import annotations

import importlib
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Sequence, Tuple, Union

from ._checks import shown
from ._codec import EPOCH, OUTPUT, RowFailure
from ._declarations import RealtimeFeatureView
from ._values import Convert, Mismatch, Never, converter
from .types import Bool, DataType, Float64, Int64, String, Timestamp

if TYPE_CHECKING:
    from ._evaluate import Evaluator

# With a release before, timestamps have nanoseconds only, and so years 1677 to 2262.
PANDAS_MAJOR_MIN = 2
# Beyond, a float does not tell neighbouring integers apart.
_FLOAT_EXACT_MAX = 2**53
_NOT_A_TIME = -(2**63)
_NONE = type(None)

Outcome = Union[bytes, Dict[str, Any], RowFailure]
#: (name, what makes a value of it)
Finish = Sequence[Tuple[str, Callable[[Any], Any]]]


class Batch:
    """The part of an `Evaluator` that a view in pandas mode needs."""

    def __init__(self, evaluator: Evaluator, view: RealtimeFeatureView) -> None:
        self._evaluator = evaluator
        self._pd, self._np = _load(view.name)
        self._sources = [
            [
                (field.name, itemgetter(field.name), {fits, _NONE}, fits is Never, convert, self._maker(field.dtype))
                for field, (_, fits, convert) in zip(source.schema, spec)
            ]
            for source, spec in zip(view.sources, evaluator._sources)
        ]
        self._features = [(feature.name, feature.dtype) for feature in view.features]

    def encoded(
        self, indexes: Sequence[int], rows: Sequence[Mapping[str, Any]], context: Any
    ) -> List[Union[bytes, RowFailure]]:
        """For each row, its encoded fields. `indexes`: where the rows are in the request."""
        from ._evaluate import Failed

        evaluator, outcomes = self._evaluator, {}
        try:
            arguments, good = self._frames(rows), list(range(len(rows)))
        except (KeyError, Mismatch):
            # Some row does not fit: which, and why, is found out one by one.
            checked = []
            good = []
            for at, row in enumerate(rows):
                try:
                    checked.append(evaluator.inputs(row))
                    good.append(at)
                except Failed as failed:
                    outcomes[at] = failed.failure
            arguments = self._frames_of_sources(checked)
        results = self._evaluate(
            arguments, [indexes[at] for at in good], context, evaluator._outputs, b"".join
        )
        if not outcomes:
            return results
        outcomes.update(zip(good, results))
        return [outcomes[at] for at in range(len(rows))]

    def values(
        self, rows: Sequence[Sequence[Mapping[str, Any]]], context: Any
    ) -> List[Union[Dict[str, Any], RowFailure]]:
        """The same from a person's rows, to values."""
        from ._evaluate import Failed

        evaluator, outcomes, checked, good = self._evaluator, {}, [], []
        for at, sources in enumerate(rows):
            try:
                checked.append(evaluator.given(sources))
                good.append(at)
            except Failed as failed:
                outcomes[at] = failed.failure
        names = [name for name, _ in self._features]
        results = self._evaluate(
            self._frames_of_sources(checked),
            good,
            context,
            evaluator._converters,
            lambda values: dict(zip(names, values)),
        )
        outcomes.update(zip(good, results))
        return [outcomes[at] for at in range(len(rows))]

    def _evaluate(
        self,
        arguments: Sequence[Any],
        indexes: Sequence[int],
        context: Any,
        finish: Finish,
        whole: Callable[[Sequence[Any]], Any],
    ) -> List[Any]:
        from ._evaluate import Failed, bad_value, describe

        evaluator, count = self._evaluator, len(indexes)
        if not count:
            return []
        try:
            result = evaluator._call(arguments, True, context)
            try:
                columns = self._columns(result, count)
            except Failed:
                raise
            except BaseException as error:
                evaluator.output(f"returned a result that raised {describe(error)}")
        except Failed as failed:
            return [failed.failure] * count
        bad: Dict[int, RowFailure] = {}
        finished: List[Sequence[Any]] = []
        for (name, make), cells in zip(finish, columns):
            try:
                finished.append([make(cell) for cell in cells])
                continue
            except BaseException:
                pass
            parts: List[Any] = []
            for at, cell in enumerate(cells):
                try:
                    parts.append(make(cell))
                except BaseException as error:
                    parts.append(b"")
                    message = f"feature view {evaluator.name!r} " + bad_value(
                        name, f" in row {indexes[at]}", error
                    )
                    bad.setdefault(at, evaluator.failure(OUTPUT, message))
            finished.append(parts)
        outcomes = [whole(parts) for parts in zip(*finished)]
        for at, failure in bad.items():
            outcomes[at] = failure
        return outcomes

    # --- rows to frames ---

    def _frames(self, rows: Sequence[Mapping[str, Any]]) -> List[Any]:
        """From rows that the codec has decoded. Raises `KeyError` or `Mismatch` if one does not fit."""
        frames = []
        for source in self._sources:
            columns = {}
            for name, get, fits, always, convert, make in source:
                values = list(map(get, rows))
                if always or not fits.issuperset(map(type, values)):
                    values = list(map(convert, values))
                columns[name] = make(values)
            frames.append(self._frame(columns, len(rows)))
        return frames

    def _frames_of_sources(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> List[Any]:
        """From rows whose values have been looked at."""
        return [
            self._frame(
                {name: make([row[at][name] for row in rows]) for name, _, _, _, _, make in source},
                len(rows),
            )
            for at, source in enumerate(self._sources)
        ]

    def _frame(self, columns: Dict[str, Any], count: int) -> Any:
        return self._pd.DataFrame(columns, index=self._pd.RangeIndex(count), copy=False)

    def _maker(self, dtype: DataType) -> Callable[[List[Any]], Any]:
        """A list of values of the type, `None` for null, to a column."""
        pd, np = self._pd, self._np

        def floats(values: List[Any]) -> Any:
            return np.array(values, dtype=np.float64)  # `None` becomes NaN

        def masked(values: List[Any], kind: Any, zero: Any, array: Any) -> Any:
            if None not in values:
                return np.array(values, dtype=kind)
            mask = np.array([value is None for value in values])
            filled = [zero if value is None else value for value in values]
            return array(np.array(filled, dtype=kind), mask)

        def ints(values: List[Any]) -> Any:
            return masked(values, np.int64, 0, pd.arrays.IntegerArray)

        def bools(values: List[Any]) -> Any:
            return masked(values, np.bool_, False, pd.arrays.BooleanArray)

        def objects(values: List[Any]) -> Any:
            column = np.empty(len(values), dtype=object)
            for at, value in enumerate(values):
                column[at] = value
            # A bare array would be looked through for strings.
            return extension(column)

        def strings(values: List[Any]) -> Any:
            return pd.array(values, dtype="str")

        def moments(values: List[Any]) -> Any:
            micros = []
            for value in values:
                if value is None:
                    micros.append(_NOT_A_TIME)
                else:
                    since = value - EPOCH
                    micros.append(
                        (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
                    )
            naive = np.array(micros, dtype=np.int64).view("M8[us]")
            return pd.DatetimeIndex(naive, copy=False).tz_localize("UTC").array

        extension = getattr(pd.arrays, "NumpyExtensionArray", None) or pd.arrays.PandasArray
        if dtype == String and int(pd.__version__.split(".")[0]) >= 3:
            return strings
        makers: Dict[DataType, Callable[[List[Any]], Any]] = {
            Float64: floats,
            Int64: ints,
            Bool: bools,
            Timestamp: moments,
        }
        return makers.get(dtype, objects)

    # --- what comes back to values ---

    def _columns(self, result: Any, count: int) -> List[List[Any]]:
        """For each feature its `count` values, `None` for null. Raises `Failed`."""
        evaluator, pd = self._evaluator, self._pd
        if isinstance(result, pd.DataFrame):
            names = list(result.columns)
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                evaluator.output(f"returned column {twice!r} twice")
            evaluator.check_names(names)
            result = self._in_order(result, count, "a frame")
        elif isinstance(result, Mapping):
            evaluator.check_names(result)
        else:
            evaluator.output(
                f"returned {shown(result)} instead of a pandas DataFrame, or a dict of columns, "
                f"with {evaluator.declared()}"
            )
        return [self._cells(name, dtype, result[name], count) for name, dtype in self._features]

    def _in_order(self, table: Any, count: int, what: str) -> Any:
        """Rows belong to each other by their labels, as everywhere in pandas."""
        if len(table) != count:
            self._evaluator.output(
                f"returned {what} of {len(table)} rows for {count}: it must return one for each, in their order"
            )
        wanted = self._pd.RangeIndex(count)
        if table.index.equals(wanted):
            return table
        if table.index.is_unique and self._pd.api.types.is_integer_dtype(table.index.dtype):
            if table.index.isin(wanted).all():
                return table.reindex(wanted)
        self._evaluator.output(
            f"returned {what} with an index that is not its input's, so that rows cannot be told apart: "
            "return it with .reset_index(drop=True) if its rows are in the input's order"
        )

    def _cells(self, name: str, dtype: DataType, column: Any, count: int) -> List[Any]:
        evaluator, pd, np = self._evaluator, self._pd, self._np
        if isinstance(column, pd.Series):
            # A frame's columns are in order already, which costs nothing to see.
            column = self._in_order(column, count, f"feature {name!r}")
        elif isinstance(column, (str, bytes)) or not isinstance(
            column, (list, tuple, np.ndarray, pd.Index, pd.api.extensions.ExtensionArray)
        ):
            evaluator.output(
                f"returned feature {name!r} as {shown(column)} instead of a column of {count} values"
            )
        elif isinstance(column, np.ndarray) and column.ndim == 0:
            evaluator.output(f"returned feature {name!r} as a single value instead of a column")
        elif len(column) != count:
            evaluator.output(f"returned feature {name!r} with {len(column)} values for {count} rows")
        if isinstance(column, (list, tuple)):
            return self._without_missing(dtype, list(column))
        kind = getattr(column.dtype, "kind", "O") if isinstance(column.dtype, np.dtype) else "E"
        if kind == "M" and dtype == Timestamp:
            evaluator.output(
                f"returned feature {name!r} as {column.dtype} without a timezone: "
                'write .dt.tz_localize("UTC")'
            )
        if isinstance(column.dtype, pd.DatetimeTZDtype) and dtype == Timestamp:
            return self._moments(column)
        if kind in "iu" and dtype == Float64:
            column = np.asarray(column, dtype=np.float64)
        if kind in "mM" and isinstance(column, np.ndarray):
            column = pd.Series(column)  # numpy would give integers for nanoseconds
        values: List[Any] = column.tolist()
        if kind in "iubS" or (kind == "f" and column.ndim > 1):
            return values
        if kind == "f":
            if np.isnan(column).any():
                values = [None if value != value else value for value in values]
            if dtype == Int64:
                # pandas makes floats of integers as soon as one of them is missing.
                values = [_whole(value) for value in values]
            return values
        return self._without_missing(dtype, values)

    def _moments(self, column: Any) -> List[Any]:
        moments = (column.array if hasattr(column, "array") else column).as_unit("us")
        return [
            None if micros == _NOT_A_TIME else _moment(micros) for micros in moments.asi8.tolist()
        ]

    def _without_missing(self, dtype: DataType, values: List[Any]) -> List[Any]:
        kinds = set(map(type, values))
        if kinds <= {float, _NONE}:
            return [None if value != value else value for value in values]
        if kinds <= {int, bool, str, bytes, list, dict, _NONE}:
            return values
        np, missing = self._np, (type(self._pd.NA), type(self._pd.NaT))
        return [
            None
            if isinstance(value, missing)
            or (isinstance(value, (float, np.floating)) and value != value)
            or (isinstance(value, (np.datetime64, np.timedelta64)) and np.isnat(value))
            else value
            for value in values
        ]


def _whole(value: Any) -> Any:
    if value is None or not value.is_integer() or abs(value) > _FLOAT_EXACT_MAX:
        return value
    return int(value)


class _OutOfYears:
    """A moment that Python cannot hold; the converter refuses it by what it shows."""

    def __init__(self, micros: int) -> None:
        self._micros = micros

    def __repr__(self) -> str:
        return f"of {self._micros} microseconds, which is outside of the years 1 to 9999"


def _moment(micros: int) -> Any:
    try:
        return EPOCH + timedelta(0, 0, micros)
    except OverflowError:
        return _OutOfYears(micros)


def _load(view: str) -> Tuple[Any, Any]:
    try:
        pd, np = importlib.import_module("pandas"), importlib.import_module("numpy")
    except ImportError as error:
        raise ImportError(
            f'feature view {view!r} has mode="pandas", and pandas cannot be imported ({error}): '
            "add pandas to the requirements of its environment"
        ) from None
    if int(pd.__version__.split(".")[0]) < PANDAS_MAJOR_MIN:
        raise ImportError(
            f'feature view {view!r} has mode="pandas", and pandas is {pd.__version__}: '
            f"ask for pandas>={PANDAS_MAJOR_MIN} in the requirements of its environment"
        )
    return pd, np
