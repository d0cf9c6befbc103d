"""Does a Python value fit a declared type? One converter for a type, made once."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Mapping

from ._checks import shown
from ._codec import INT64_MAX, INT64_MIN
from .types import (
    Array,
    Bool,
    Bytes,
    DataType,
    Float64,
    Int64,
    Map,
    String,
    Struct,
    Timestamp,
)

Convert = Callable[[Any], Any]


class Mismatch(Exception):
    """A value that does not fit. `path` leads to it from the top: `[2]["lat"]`."""

    def __init__(self, path: str, says: str) -> None:
        super().__init__(path, says)
        self.path = path
        self.says = says


class Never:
    """The class of no value."""


#: The Python type whose values always fit as they are; `Never` if each must be looked at.
EXACT: Dict[DataType, type] = {Bool: bool, Float64: float, Bytes: bytes, String: str}


#: The same for values that the codec has decoded: integers in range, moments in UTC.
EXACT_DECODED: Dict[DataType, type] = {**EXACT, Int64: int, Timestamp: datetime}


def exact(dtype: DataType) -> type:
    return EXACT.get(dtype, Never)


def exact_decoded(dtype: DataType) -> type:
    return EXACT_DECODED.get(dtype, Never)


def converter(dtype: DataType) -> Convert:
    """A function that returns the value as the type has it, or raises `Mismatch`.

    What it returns is new all the way down: whoever changes it changes nobody else's.
    """
    if isinstance(dtype, Array):
        return _nullable(_array(dtype), dtype)
    if isinstance(dtype, Map):
        return _nullable(_map(dtype), dtype)
    if isinstance(dtype, Struct):
        return _nullable(_struct(dtype), dtype)
    return _nullable(_SCALARS[dtype], dtype)


def _nullable(inner: Callable[[Any, DataType], Any], dtype: DataType) -> Convert:
    def convert(value: Any) -> Any:
        value = _plain(value)
        return None if value is None else inner(value, dtype)

    return convert


def _plain(value: Any) -> Any:
    """What numpy and pandas hand out, as Python has it."""
    module = type(value).__module__
    if module == "numpy" or module.startswith("pandas."):
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return value.item()
        if hasattr(value, "tolist"):
            return value.tolist()
        if hasattr(value, "to_pydatetime"):
            return value.to_pydatetime(warn=False) if value == value else None
        if type(value).__name__ in ("NAType", "NaTType"):
            return None
    return value


def _wrong(value: Any, dtype: DataType) -> Mismatch:
    return Mismatch("", f"must be {dtype}, not {shown(value)}")


def _to_bool(value: Any, dtype: DataType) -> Any:
    if isinstance(value, bool):
        return value
    raise _wrong(value, dtype)


def _to_int(value: Any, dtype: DataType) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(value, dtype)
    if not INT64_MIN <= value <= INT64_MAX:
        raise Mismatch("", f"must be {dtype}, and {_short(value)} is outside of 64 bits")
    return int(value)


def _to_float(value: Any, dtype: DataType) -> Any:
    if isinstance(value, float):
        return float(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(value, dtype)
    try:
        return float(value)
    except OverflowError:
        raise Mismatch("", f"must be {dtype}, and {_short(value)} is too large") from None


def _short(value: int) -> str:
    # Python refuses to print integers of more than 4300 digits.
    return str(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"


def _to_string(value: Any, dtype: DataType) -> Any:
    if not isinstance(value, str):
        raise _wrong(value, dtype)
    return str(value)


def _to_bytes(value: Any, dtype: DataType) -> Any:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise _wrong(value, dtype)
    return bytes(value)


def _to_timestamp(value: Any, dtype: DataType) -> Any:
    if not isinstance(value, datetime):
        raise _wrong(value, dtype)
    if value.utcoffset() is None:
        raise Mismatch(
            "", f"must be {dtype}, and {value!r} has no timezone: write .replace(tzinfo=timezone.utc)"
        )
    try:
        return value.astimezone(timezone.utc)
    except OverflowError:
        raise Mismatch("", f"must be {dtype}, and {value!r} is outside of the years 1 to 9999") from None


_SCALARS: Dict[DataType, Callable[[Any, DataType], Any]] = {
    Bool: _to_bool,
    Int64: _to_int,
    Float64: _to_float,
    String: _to_string,
    Bytes: _to_bytes,
    Timestamp: _to_timestamp,
}


def _array(dtype: Array) -> Callable[[Any, DataType], Any]:
    convert, fits = converter(dtype.element), exact(dtype.element)

    def to_list(value: Any, _: DataType) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, dtype)
        out: List[Any] = []
        for index, item in enumerate(value):
            if type(item) is not fits:
                try:
                    item = convert(item)
                except Mismatch as mismatch:
                    raise Mismatch(f"[{index}]{mismatch.path}", mismatch.says) from None
            out.append(item)
        return out

    return to_list


def _map(dtype: Map) -> Callable[[Any, DataType], Any]:
    convert = converter(dtype.value)

    def to_dict(value: Any, _: DataType) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(value, dtype)
        out: Dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise Mismatch("", f"must be {dtype}, and has the key {shown(key)}")
            try:
                out[str(key)] = convert(item)
            except Mismatch as mismatch:
                raise Mismatch(f"[{key!r}]{mismatch.path}", mismatch.says) from None
        return out

    return to_dict


def _struct(dtype: Struct) -> Callable[[Any, DataType], Any]:
    fields = [(field.name, field.dtype, converter(field.dtype)) for field in dtype.fields]

    def to_dict(value: Any, _: DataType) -> Any:
        if not isinstance(value, Mapping):
            raise _wrong(value, dtype)
        out: Dict[str, Any] = {}
        for name, field_type, convert in fields:
            if name not in value:
                raise Mismatch(f"[{name!r}]", f"must be {field_type}, but is missing")
            try:
                out[name] = convert(value[name])
            except Mismatch as mismatch:
                raise Mismatch(f"[{name!r}]{mismatch.path}", mismatch.says) from None
        return out

    return to_dict
