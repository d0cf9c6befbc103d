"""The protobuf messages of `outstation/transform.proto` as plain Python values, in pure Python.

Null is None, a timestamp is an aware UTC `datetime`, a map and a row are dicts, an outcome is a
dict or a `RowError`. Whatever the bytes are, decoding ends, and with a value or a `CodecError`.

A flat row of scalars takes the fast paths; everything else that protobuf allows (fields in any
order, twice, unknown ones) is read by the general functions further down, to the same values.
"""

from __future__ import annotations

import struct
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Dict, List, NamedTuple, Tuple, Union

# How deep lists and maps may nest. Deep enough for any feature, far from Python's own limit.
DEPTH_MAX = 64
# An empty row takes 2 bytes here and 64 in memory: 64 MiB of them would be 2 GiB of dicts.
ROWS_MAX = 1_000_000
# Names repeat from row to row. Whoever sends ever new ones must not fill the memory.
_NAMES_MAX = 4096

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_U64 = 2**64 - 1

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_MIN = (datetime.min.replace(tzinfo=timezone.utc) - EPOCH) // _MICROSECOND
_MICROS_MAX = (datetime.max.replace(tzinfo=timezone.utc) - EPOCH) // _MICROSECOND

_double = struct.Struct("<d")
_unpack_double = _double.unpack_from
pack_double = _double.pack

INPUT, FUNCTION, OUTPUT = 1, 2, 3
FEATURE_VIEW, FEATURE_SERVICE = 1, 2


class CodecError(ValueError):
    """Bytes that are not such a message, or a value that cannot be sent."""


class OutOfRange(CodecError):
    """A well-formed row with a value that Python cannot hold: a matter of this row alone."""


class RowFailure(NamedTuple):
    """`RowError` of the protocol."""

    kind: int
    function: str
    message: str
    traceback: str = ""


class Target(NamedTuple):
    name: str
    kind: int
    views: Tuple[str, ...]
    broken: str = ""
    #: 0: no bound.
    concurrency: int = 0
    waiting: int = 0
    #: -1 low, 0 normal, 1 high.
    priority: int = 0


Row = Dict[str, Any]

_names: Dict[bytes, str] = {}


# --- decoding ---------------------------------------------------------------------------------


def decode_call_request(buf: bytes) -> Tuple[str, List[Union[Row, OutOfRange]]]:
    """The target and the rows; in place of a row with an unrepresentable value, what is wrong."""
    target = ""
    rows: List[Union[Row, OutOfRange]] = []
    pos, end = 0, len(buf)
    try:
        while pos < end:
            tag, start, stop, pos = _read(buf, pos, end)
            if tag == 0x12:
                if len(rows) >= ROWS_MAX:
                    raise CodecError(f"more than {ROWS_MAX} rows in one call")
                try:
                    rows.append(_decode_row(buf, start, stop, 0))
                except OutOfRange as error:
                    rows.append(error)
            elif tag == 0x0A:
                target = buf[start:stop].decode()
    except IndexError:
        raise CodecError("the message ends in the middle of a field") from None
    except UnicodeDecodeError:
        raise CodecError("a string is not UTF-8") from None
    return target, rows


def decode_call_response(buf: bytes) -> List[Union[Row, RowFailure]]:
    """One outcome for each row. An outcome of no kind is an empty row."""
    results: List[Union[Row, RowFailure]] = []
    pos, end = 0, len(buf)
    try:
        while pos < end:
            tag, start, stop, pos = _read(buf, pos, end)
            if tag == 0x0A:
                results.append(_decode_result(buf, start, stop))
    except IndexError:
        raise CodecError("the message ends in the middle of a field") from None
    except UnicodeDecodeError:
        raise CodecError("a string is not UTF-8") from None
    return results


def _decode_result(buf: bytes, pos: int, end: int) -> Union[Row, RowFailure]:
    outcome: Union[Row, RowFailure, None] = None
    while pos < end:
        tag, start, stop, pos = _read(buf, pos, end)
        if tag == 0x0A:
            row = _decode_row(buf, start, stop, 0)
            outcome = {**outcome, **row} if isinstance(outcome, dict) else row
        elif tag == 0x12:
            before = outcome if isinstance(outcome, RowFailure) else RowFailure(0, "", "")
            outcome = _decode_failure(buf, start, stop, before)
    return {} if outcome is None else outcome


def _decode_failure(buf: bytes, pos: int, end: int, failure: RowFailure) -> RowFailure:
    kind, function, message, traceback = failure
    while pos < end:
        tag, start, stop, pos = _read(buf, pos, end)
        if tag == 0x08:
            kind = ((start & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        elif tag == 0x12:
            function = buf[start:stop].decode()
        elif tag == 0x1A:
            message = buf[start:stop].decode()
        elif tag == 0x22:
            traceback = buf[start:stop].decode()
    return RowFailure(kind, function, message, traceback)


def _decode_row(buf: bytes, pos: int, end: int, depth: int) -> Row:
    """The fields of a `Row` or of a `MapValue` in buf[pos:end]; of a name given twice, the last."""
    row: Row = {}
    names = _names
    while pos < end:
        # The usual field, shorter than 128 bytes: 0A length, 0A length name, 12 length value.
        if buf[pos] == 0x0A and buf[pos + 1] < 0x80:
            start = pos + 2
            stop = start + buf[pos + 1]
            if stop > end:
                raise CodecError("a field is longer than what holds it")
            if start + 4 <= stop and buf[start] == 0x0A:
                value_at = start + 2 + buf[start + 1]
                if (
                    value_at + 2 <= stop
                    and buf[value_at] == 0x12
                    and value_at + 2 + buf[value_at + 1] == stop
                ):
                    raw = buf[start + 2 : value_at]
                    name = names.get(raw)
                    if name is None:
                        name = _remember(raw)
                    at = value_at + 2
                    kind = buf[at] if at < stop else 0
                    if kind == 0x19 and at + 9 == stop:
                        row[name] = _unpack_double(buf, at + 1)[0]
                    elif kind == 0x22 and at + 2 + buf[at + 1] == stop and buf[at + 1] < 0x80:
                        row[name] = buf[at + 2 : stop].decode()
                    elif kind == 0x10 and at + 2 == stop and buf[at + 1] < 0x80:
                        row[name] = (buf[at + 1] >> 1) ^ -(buf[at + 1] & 1)
                    elif kind == 0:
                        if at < stop:
                            raise CodecError("field number 0 does not exist")
                        row[name] = None
                    else:
                        row[name] = _decode_value(buf, at, stop, depth, None)
                    pos = stop
                    continue
        tag, first, stop, pos = _read(buf, pos, end)
        if tag == 0x0A:
            name, value = _decode_field(buf, first, stop, depth)
            row[name] = value
    return row


def _remember(raw: bytes) -> str:
    name = raw.decode()
    if len(_names) >= _NAMES_MAX:
        _names.clear()
    _names[raw] = name
    return name


def _decode_field(buf: bytes, pos: int, end: int, depth: int) -> Tuple[str, Any]:
    name, value = "", None
    while pos < end:
        tag, start, stop, pos = _read(buf, pos, end)
        if tag == 0x0A:
            name = buf[start:stop].decode()
        elif tag == 0x12:
            value = _decode_value(buf, start, stop, depth, value)
    return name, value


def _decode_value(buf: bytes, pos: int, end: int, depth: int, value: Any) -> Any:
    """`value` is what came before in the same place: protobuf merges the two."""
    while pos < end:
        tag, start, stop, pos = _read(buf, pos, end)
        if tag == 0x19:
            value = _unpack_double(buf, start)[0]
        elif tag == 0x10:
            value = (start >> 1) ^ -(start & 1)
        elif tag == 0x22:
            value = buf[start:stop].decode()
        elif tag == 0x08:
            value = start != 0
        elif tag == 0x30:
            micros = (start >> 1) ^ -(start & 1)
            if not _MICROS_MIN <= micros <= _MICROS_MAX:
                raise OutOfRange(
                    f"timestamp of {micros} microseconds is outside of the years 1 to 9999"
                )
            value = EPOCH + timedelta(0, 0, micros)
        elif tag == 0x2A:
            value = buf[start:stop]
        elif tag == 0x3A:
            if depth >= DEPTH_MAX:
                raise CodecError(f"a value nested more than {DEPTH_MAX} deep")
            if type(value) is not list:
                value = []
            _decode_list(buf, start, stop, depth + 1, value)
        elif tag == 0x42:
            if depth >= DEPTH_MAX:
                raise CodecError(f"a value nested more than {DEPTH_MAX} deep")
            row = _decode_row(buf, start, stop, depth + 1)
            if type(value) is dict:
                value.update(row)
            else:
                value = row
    return value


def _decode_list(buf: bytes, pos: int, end: int, depth: int, into: List[Any]) -> None:
    append = into.append
    while pos < end:
        # The usual element of a vector: a double.
        if pos + 11 <= end and buf[pos] == 0x0A and buf[pos + 1] == 9 and buf[pos + 2] == 0x19:
            append(_unpack_double(buf, pos + 3)[0])
            pos += 11
            continue
        tag, start, stop, pos = _read(buf, pos, end)
        if tag == 0x0A:
            append(_decode_value(buf, start, stop, depth, None))


def _read(buf: bytes, pos: int, end: int) -> Tuple[int, int, int, int]:
    """One field in buf[pos:end]: its tag; its number if it is a varint, else where its content
    starts; where that stops; where the next field is."""
    tag = buf[pos]
    pos += 1
    if tag >= 0x80:
        tag, pos = _varint(buf, pos - 1, end)
    wire = tag & 7
    if not 8 <= tag <= 0xFFFFFFFF:
        raise CodecError(f"field number {tag >> 3} does not exist")
    if wire == 2:
        length, pos = _varint(buf, pos, end)
        stop = pos + length
    elif wire == 0:
        number, pos = _varint(buf, pos, end)
        return tag, number, pos, pos
    elif wire == 1:
        stop = pos + 8
    elif wire == 5:
        stop = pos + 4
    elif wire == 3:
        stop = _skip_group(buf, pos, end, tag)
    else:
        raise CodecError(f"wire type {wire} does not exist" if wire > 5 else "a group that ends only")
    if stop > end:
        raise CodecError("a field is longer than what holds it")
    return tag, pos, stop, stop


def _varint(buf: bytes, pos: int, end: int) -> Tuple[int, int]:
    result = shift = 0
    while True:
        if pos >= end:
            raise CodecError("the message ends in the middle of a number")
        byte = buf[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _U64, pos
        shift += 7
        if shift == 70:
            raise CodecError("a number is longer than ten bytes")


def _skip_group(buf: bytes, pos: int, end: int, tag: int) -> int:
    """Where the group ends that starts at `pos` (an ancient form, only ever an unknown field)."""
    waiting = [tag + 1]
    while waiting:
        if len(waiting) > DEPTH_MAX:
            raise CodecError(f"a value nested more than {DEPTH_MAX} deep")
        if pos >= end:
            raise CodecError("the message ends in the middle of a group")
        inner, after = _varint(buf, pos, end)
        if inner & 7 == 4:
            if inner != waiting.pop():
                raise CodecError("a group ends that did not begin")
            pos = after
        elif inner & 7 == 3:
            if not 8 <= inner <= 0xFFFFFFFF:
                raise CodecError("field number 0 does not exist")
            waiting.append(inner + 1)
            pos = after
        else:
            pos = _read(buf, pos, end)[3]
    return pos


# --- encoding ---------------------------------------------------------------------------------


def encode_call_request(target: str, rows: List[Row]) -> bytes:
    parts = [_string(b"\x0a", target)]
    for row in rows:
        parts.append(_delimited(b"\x12", encode_row(row)))
    return b"".join(parts)


def encode_row(row: Row) -> bytes:
    return b"".join([encode_field(name, value, 0) for name, value in row.items()])


def encode_field(name: str, value: Any, depth: int = 0) -> bytes:
    return _delimited(
        b"\x0a", _delimited(b"\x0a", _utf8(name)) + _delimited(b"\x12", encode_value(value, depth))
    )


def field_prefix(name: str, tag: bytes, length: int) -> bytes:
    """What comes before the content of a field, if that is a value of `tag` and has `length` bytes."""
    key = _delimited(b"\x0a", _utf8(name))
    value = b"\x12" + varint(len(tag) + length) + tag
    return b"\x0a" + varint(len(key) + len(value) + length) + key + value


def encode_result(fields: bytes) -> bytes:
    """One item of a `CallResponse`: a row, from its encoded fields."""
    return _delimited(b"\x0a", _delimited(b"\x0a", fields))


def encode_failure(failure: RowFailure) -> bytes:
    body = b"\x08" + varint(failure.kind) if failure.kind else b""
    body += _string(b"\x12", failure.function)
    body += _string(b"\x1a", failure.message)
    body += _string(b"\x22", failure.traceback)
    return _delimited(b"\x0a", _delimited(b"\x12", body))


def encode_call_response(results: List[Union[Row, RowFailure]]) -> bytes:
    return b"".join(
        encode_failure(result) if isinstance(result, RowFailure) else encode_result(encode_row(result))
        for result in results
    )


def encode_targets(targets: List[Target]) -> bytes:
    """`ListTargetsResponse`."""
    parts = []
    for target in targets:
        body = _string(b"\x0a", target.name) + b"\x10" + varint(target.kind)
        body += _string(b"\x1a", target.broken)
        body += b"".join(_delimited(b"\x22", _utf8(view)) for view in target.views)
        if target.concurrency:
            body += b"\x28" + varint(target.concurrency)
        if target.waiting:
            body += b"\x30" + varint(target.waiting)
        if target.priority:
            body += b"\x38" + varint((target.priority << 1) ^ (target.priority >> 63))
        parts.append(_delimited(b"\x0a", body))
    return b"".join(parts)


def encode_value(value: Any, depth: int = 0) -> bytes:
    """The body of a `Value`."""
    encode = _ENCODERS.get(type(value))
    if encode is None:
        encode = _encoder_of_subclass(value)
    return encode(value, depth)


def _bool(value: bool, depth: int) -> bytes:
    return b"\x08\x01" if value else b"\x08\x00"


def _int(value: int, depth: int) -> bytes:
    if not INT64_MIN <= value <= INT64_MAX:
        raise CodecError(f"{value if value.bit_length() < 200 else 'an integer'} does not fit int64")
    return b"\x10" + varint((value << 1) ^ (value >> 63))


def _float(value: float, depth: int) -> bytes:
    return b"\x19" + pack_double(value)


def _str(value: str, depth: int) -> bytes:
    return _delimited(b"\x22", _utf8(value))


def _bytes(value: bytes, depth: int) -> bytes:
    return _delimited(b"\x2a", value)


def _datetime(value: datetime, depth: int) -> bytes:
    if value.tzinfo is None or value.utcoffset() is None:
        raise CodecError(f"{value} has no timezone")
    micros = (value - EPOCH) // _MICROSECOND
    return b"\x30" + varint((micros << 1) ^ (micros >> 63))


def _list(value: Any, depth: int) -> bytes:
    if depth >= DEPTH_MAX:
        raise CodecError(f"a value nested more than {DEPTH_MAX} deep")
    depth += 1
    return _delimited(
        b"\x3a", b"".join([_delimited(b"\x0a", encode_value(item, depth)) for item in value])
    )


def _dict(value: Dict[str, Any], depth: int) -> bytes:
    if depth >= DEPTH_MAX:
        raise CodecError(f"a value nested more than {DEPTH_MAX} deep")
    depth += 1
    return _delimited(
        b"\x42", b"".join([encode_field(name, item, depth) for name, item in value.items()])
    )


_ENCODERS: Dict[type, Callable[[Any, int], bytes]] = {
    type(None): lambda value, depth: b"",
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    datetime: _datetime,
    list: _list,
    tuple: _list,
    dict: _dict,
}


def _encoder_of_subclass(value: Any) -> Callable[[Any, int], bytes]:
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode
    raise CodecError(f"a {type(value).__name__} cannot be sent")


def varint(number: int) -> bytes:
    """Of a number that is not negative, or of the low 64 bits of one that is."""
    number &= _U64
    if number < 0x80:
        return _SMALL[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = [bytes((number,)) for number in range(0x80)]


def _delimited(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CodecError("a string holds half of a surrogate pair, which UTF-8 cannot") from None


def _string(tag: bytes, text: str) -> bytes:
    """A string field; as protobuf does it, left out when empty. What is not UTF-8 becomes '?'."""
    return _delimited(tag, text.encode("utf-8", "replace")) if text else b""
