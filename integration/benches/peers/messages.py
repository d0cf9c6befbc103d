"""Protobuf as generated code does it: a request's rows as dicts, results as a response."""

import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

FIELD_OF = {bool: "bool_value", int: "int64_value", float: "float64_value", str: "string_value"}
PROTO = Path(__file__).resolve().parents[3] / "api/proto/outstation/transform.proto"


def generated(folder: Path) -> Any:
    """The module that protoc makes of transform.proto, made in `folder` if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "transform_pb2.py").exists():
        from grpc_tools import protoc

        if protoc.main(["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", str(PROTO)]) != 0:
            raise SystemExit("protoc failed")
    sys.path.insert(0, str(folder))
    import transform_pb2

    return transform_pb2


def rows_of(request: Any) -> List[Dict[str, Any]]:
    rows = []
    for row in request.rows:
        fields = {}
        for field in row.fields:
            kind = field.value.WhichOneof("kind")
            fields[field.name] = getattr(field.value, kind) if kind else None
        rows.append(fields)
    return rows


def response_of(pb: Any, target: str, results: List[Dict[str, Any]]) -> Any:
    response = pb.CallResponse()
    for result in results:
        row = response.results.add().row
        for name, value in result.items():
            field = row.fields.add()
            field.name = f"{target}.{name}"
            setattr(field.value, FIELD_OF[type(value)], value)
    return response


def caller(pb: Any, functions: Dict[str, Callable[[Dict[str, Any]], Dict[str, Any]]]) -> Any:
    def call(request: Any, _context: Any = None) -> Any:
        function = functions[request.target]
        return response_of(pb, request.target, [function(row) for row in rows_of(request)])

    return call
