"""Types of fields and attributes, as they are written in declarations.

`Bool`, `Int64`, `Float64`, `String`, `Bytes`, `Timestamp`, `Array(Float64)`, `Map(String, Int64)`,
`Struct([Field("lat", Float64)])`. Every value may be null (`None`).
"""

from __future__ import annotations

from typing import Any, List, Tuple

from . import _checks
from ._errors import DeclarationError

__all__ = [
    "Array",
    "Bool",
    "Bytes",
    "DataType",
    "Field",
    "Float64",
    "Int64",
    "Map",
    "String",
    "Struct",
    "Timestamp",
]

# Deeper types could not be sent: the wire allows values 64 deep.
TYPE_DEPTH_MAX = 32

_WORDS = "a type of outstation.types, such as Float64 or Array(String)"
_PYTHON_TYPES = {
    bool: "Bool",
    int: "Int64",
    float: "Float64",
    str: "String",
    bytes: "Bytes",
    list: "Array(…)",
    dict: "Map(String, …)",
}


class DataType:
    """What a value may be."""

    depth = 1

    def manifest(self) -> Any:
        """As the manifest has it: `"float64"`, `{"array": "float64"}`, …"""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataType) and self.manifest() == other.manifest()

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return str(self)


class Scalar(DataType):
    """One of the ready-made `Bool`, `Int64`, `Float64`, `String`, `Bytes`, `Timestamp`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def manifest(self) -> Any:
        return self._name.lower()

    def __str__(self) -> str:
        return self._name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise DeclarationError(
            f"{self._name} is a type already", hint=f"write {self._name} without parentheses"
        )


Bool = Scalar("Bool")
#: -2^63 to 2^63 - 1.
Int64 = Scalar("Int64")
#: NaN and the infinities are values of it. Takes integers too, as floats.
Float64 = Scalar("Float64")
String = Scalar("String")
Bytes = Scalar("Bytes")
#: A point in time: a timezone-aware `datetime`, in UTC when it comes from a row. Microseconds.
Timestamp = Scalar("Timestamp")


class Array(DataType):
    """A list whose elements are all of one type."""

    def __init__(self, element: DataType) -> None:
        self.element = data_type("Array", "element", element)
        self.depth = _deeper("Array", self.element.depth)

    def manifest(self) -> Any:
        return {"array": self.element.manifest()}

    def __str__(self) -> str:
        return f"Array({self.element})"


class Map(DataType):
    """A dict from strings to values of one type."""

    def __init__(self, key: DataType, value: DataType) -> None:
        if data_type("Map", "key", key) != String:
            raise DeclarationError(
                f"Map: keys must be String, not {key}", hint="write Map(String, …)"
            )
        self.value = data_type("Map", "value", value)
        self.depth = _deeper("Map", self.value.depth)

    def manifest(self) -> Any:
        return {"map": self.value.manifest()}

    def __str__(self) -> str:
        return f"Map(String, {self.value})"


class Struct(DataType):
    """A dict with these fields."""

    def __init__(self, fields: List["Field"]) -> None:
        self.fields: Tuple[Field, ...] = _checks.listing(
            "Struct", "fields", fields, Field, 'Field("name", type)'
        )
        _checks.distinct("Struct", "fields", [field.name for field in self.fields])
        self.depth = _deeper("Struct", max(field.dtype.depth for field in self.fields))

    def manifest(self) -> Any:
        return {"struct": [field.manifest() for field in self.fields]}

    def __str__(self) -> str:
        return f"Struct({', '.join(f'{field.name}: {field.dtype}' for field in self.fields)})"


class Field:
    """A named value of a request source or of a struct."""

    @_checks.strict("Field")
    def __init__(self, name: str, dtype: DataType) -> None:
        self.name = _checks.name("Field", name)
        self.dtype = data_type(f"Field {self.name!r}", "dtype", dtype)

    def manifest(self) -> Any:
        return {"name": self.name, "type": self.dtype.manifest()}

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.dtype})"


def data_type(what: str, field: str, value: Any) -> DataType:
    if isinstance(value, DataType):
        return value
    if isinstance(value, type) and value in _PYTHON_TYPES:
        hint = f"write {_PYTHON_TYPES[value]}, from outstation.types"
    elif isinstance(value, type) and issubclass(value, DataType):
        hint = f"write {value.__name__}(…) with what it holds"
    else:
        hint = "outstation.types has " + ", ".join(n for n in __all__ if n not in ("DataType", "Field"))
    raise DeclarationError(f"{what}: {field} must be {_WORDS}, not {_checks.shown(value)}", hint=hint)


def _deeper(what: str, depth: int) -> int:
    if depth >= TYPE_DEPTH_MAX:
        raise DeclarationError(
            f"{what}: a type nested more than {TYPE_DEPTH_MAX} deep", hint="flatten it"
        )
    return depth + 1
