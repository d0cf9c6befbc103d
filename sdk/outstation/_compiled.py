"""What the native module is told of a target, and what it leaves to Python.

The module is optional: without it, or with `--pure`, the worker is Python throughout, with the same
answers.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import _codec
from ._codec import EPOCH, FUNCTION, RowFailure
from ._evaluate import Evaluator, Failed, describe
from .types import Bool, Bytes, DataType, Float64, Int64, String, Timestamp

#: Types that the native module knows, by the name that it has for them.
_SCALARS: Dict[DataType, str] = {
    Bool: "bool",
    Int64: "int64",
    Float64: "float64",
    String: "string",
    Bytes: "bytes",
    Timestamp: "timestamp",
}

#: Name, function, `Replay`, name and type of each source's fields; name, type, encoder of features.
View = Tuple[str, Any, Any, List[List[Tuple[str, str]]], List[Tuple[str, str, Any]]]


def native() -> Optional[ModuleType]:
    """The module, if it is installed and wanted."""
    if os.environ.get("OUTSTATION_PURE_PYTHON"):
        return None
    try:
        from . import _native  # type: ignore[attr-defined, unused-ignore]
    except ImportError:
        return None
    module: ModuleType = _native
    return module


def moment(micros: int) -> datetime:
    return EPOCH + timedelta(0, 0, micros)


def plan(evaluators: Sequence[Evaluator]) -> Optional[List[View]]:
    """None if one of the views is not for the native module; it decides on the types of inputs."""
    views: List[View] = []
    for evaluator in evaluators:
        # One row is one call, with the fields of its sources and nothing else.
        if getattr(evaluator, "batch", None) is not None:
            return None
        if getattr(evaluator, "takes_context", False):
            return None
        types, features = evaluator._types, evaluator._features
        sources = [
            [(name, _SCALARS.get(types[name], "")) for name, _, _ in spec]
            for spec in evaluator._sources
        ]
        outputs = [
            (name, _SCALARS.get(features[name], ""), encode) for name, encode in evaluator._outputs
        ]
        views.append((evaluator.name, evaluator._function, Replay(evaluator), sources, outputs))
    return views


class Replay(Evaluator):
    """What an evaluator makes of a call that has been made already."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.__dict__.update(evaluator.__dict__)
        self._function = self._again
        self._outcome: Tuple[Any, Optional[BaseException]] = (None, None)

    def __call__(
        self, result: Any, error: Optional[BaseException], with_traceback: bool
    ) -> Tuple[bytes, bool, bool]:
        """The fields of the row, or the whole item of the response; whether it is the fields; whether
        it has a traceback."""
        self._outcome = result, error
        try:
            return self.evaluate({}, with_traceback), True, False
        except Failed as failed:
            failure = failed.failure
        except Exception as other:  # a defect of this package
            failure = RowFailure(FUNCTION, self.name, f"worker: {describe(other)}")
        finally:
            self._outcome = None, None
        return _codec.encode_failure(failure), False, bool(failure.traceback)

    def inputs(self, row: Mapping[str, Any]) -> List[Dict[str, Any]]:
        return []

    def _again(self) -> Any:
        result, error = self._outcome
        if error is not None:
            raise error
        return result
