"""The native module against the Python code: the same values, the same answers, from any bytes."""

from __future__ import annotations

import os
import random
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from conftest import HEAD, WorkerProcess, call, frame

from outstation import _codec, _compiled, _frames

CASES = 20_000
CALLS = 6_000


@pytest.fixture(scope="module")
def module() -> Any:
    if os.environ.get("OUTSTATION_PURE_PYTHON"):
        pytest.skip("OUTSTATION_PURE_PYTHON is set")
    found = _compiled.native()
    assert found is not None, "outstation._native is missing: build it with `cargo verify`"
    return found


SCALARS: List[Callable[[random.Random], Any]] = [
    lambda r: None,
    lambda r: r.random() < 0.5,
    lambda r: r.choice([0, 1, -1, 63, -64, 64, 2**31, 2**63 - 1, -(2**63), r.randrange(-(2**63), 2**63)]),
    lambda r: r.choice([0.0, -0.0, 1.5, 1e308, float("nan"), float("inf"), -float("inf"), r.random()]),
    lambda r: "".join(r.choice("aé€😀\0") for _ in range(r.choice([0, 1, 5, 40, 200]))),
    lambda r: r.randbytes(r.choice([0, 1, 127, 128, 300])) if hasattr(r, "randbytes") else b"\xff",
    lambda r: _codec.EPOCH + timedelta(0, 0, r.randrange(-(10**16), 10**16)),
]


def value(r: random.Random, depth: int = 0) -> Any:
    if depth < 4 and r.random() < 0.25:
        if r.random() < 0.5:
            return [value(r, depth + 1) for _ in range(r.randrange(4))]
        return {name(r): value(r, depth + 1) for _ in range(r.randrange(4))}
    return r.choice(SCALARS)(r)


def name(r: random.Random) -> str:
    return r.choice(["x", "y", "when", "é", "", "n" * 127, "n" * 128, f"f{r.randrange(9000)}"])


def mutated(r: random.Random, raw: bytes) -> bytes:
    out = bytearray(raw)
    for _ in range(r.choice([0, 0, 1, 1, 2, 5])):
        at = r.randrange(len(out) + 1)
        act = r.randrange(5)
        if act == 0:
            out[at : at + 1] = bytes([r.randrange(256)])
        elif act == 1:
            out[at:at] = bytes([r.choice([0x0A, 0x12, 0x19, 0x10, 0x22, 0x80, 0x3A, 0x42, 0x30, 0xFF])])
        elif act == 2:
            del out[at : at + r.randrange(1, 5)]
        elif act == 3:
            out[at:at] = out[r.randrange(len(out) + 1) :][: r.randrange(20)]
        else:
            del out[at:]
    return bytes(out)


def same_decoding(module: Any, raw: bytes) -> bool:
    """Whether the native one decoded it."""
    found = module.decode_call_request(raw, _compiled.moment)
    if found is None:
        return False
    wanted = _codec.decode_call_request(raw)  # must not raise
    assert repr(found) == repr(wanted), raw
    return True


def test_decoding_agrees(module: Any) -> None:
    for seed in range(CASES):
        r = random.Random(seed)
        rows = [{name(r): value(r) for _ in range(r.randrange(5))} for _ in range(r.randrange(4))]
        raw = _codec.encode_call_request(r.choice(["", "t", "é" * 70]), rows)
        assert same_decoding(module, raw), raw
        same_decoding(module, mutated(r, raw))


def test_decoding_of_garbage_ends(module: Any) -> None:
    for seed in range(CASES):
        r = random.Random(seed)
        tags = [0x0A, 0x12, 0x0A, 0x12, 0x3A, 0x42, 0x00, 0x01, 0x02, 0x09, 0x7F, 0x80, 0xFF, 0x0B, 0x0C]
        same_decoding(module, bytes(r.choice(tags) for _ in range(r.randrange(60))))
        same_decoding(module, bytes(r.randrange(256) for _ in range(r.randrange(30))))


@pytest.mark.parametrize("kind", ["list", "dict", "group"])
def test_depth(module: Any, kind: str) -> None:
    def nested(depth: int) -> bytes:
        raw = b""
        for _ in range(depth):
            raw = (b"\x3a" if kind == "list" else b"\x42") + varint_of(_inner(raw, kind))
        return b"\x12" + varint_of(b"\x0a" + varint_of(b"\x0a\x01x\x12" + varint_of(raw)))

    if kind == "group":
        assert not same_decoding(module, b"\x1b" * 100_000)
        return
    assert same_decoding(module, nested(_codec.DEPTH_MAX))
    for depth in (_codec.DEPTH_MAX + 1, 1000, 20_000):
        raw = nested(depth)
        assert not same_decoding(module, raw)
        with pytest.raises(_codec.CodecError, match="nested more than 64 deep"):
            _codec.decode_call_request(raw)


def _inner(raw: bytes, kind: str) -> bytes:
    item = varint_of(raw)
    return b"\x0a" + (item if kind == "list" else varint_of(b"\x12" + item))


def varint_of(raw: bytes) -> bytes:
    return _codec.varint(len(raw)) + raw


VIEWS = HEAD + """
import os
from datetime import datetime, timezone
S = RequestSource(schema=[Field("i", Int64), Field("f", Float64), Field("s", String), Field("b", Bool)])
T = RequestSource(schema=[Field("raw", Bytes), Field("when", Timestamp), Field("i", Int64)])
L = RequestSource(schema=[Field("list", Array(Float64))])
SCALARS = [Attribute("i", Int64), Attribute("f", Float64), Attribute("s", String), Attribute("b", Bool)]

def view(sources, features):
    return realtime_feature_view(sources=sources, mode="python", features=features)

@view([S], SCALARS)
def echo(s):
    return s

@view([S, T], [Attribute("raw", Bytes), Attribute("when", Timestamp), Attribute("order", String)])
def two(s, t):
    return {"raw": t["raw"], "when": t["when"], "order": ",".join([*s, *t])}

class Dict(dict): pass
class Text(str): pass

ODD = [
    lambda: {"i": 1, "f": 2, "s": "x", "b": True},
    lambda: {"i": True, "f": 1.5, "s": "x", "b": True},
    lambda: {"i": 2**63, "f": 1.5, "s": "x", "b": True},
    lambda: {"i": 1, "f": 10**400, "s": "x", "b": True},
    lambda: {"i": 1, "f": 1.5, "s": "\\ud800", "b": True},
    lambda: {"i": 1, "f": 1.5, "s": Text("sub"), "b": None},
    lambda: {"i": 1, "f": 1.5, "s": b"x", "b": True},
    lambda: {"i": 1, "f": 1.5, "s": "x", "b": 1},
    lambda: {"i": 1, "f": 1.5, "s": "x"},
    lambda: {"i": 1, "f": 1.5, "s": "x", "b": True, "more": 1},
    lambda: {"i": 1, "f": 1.5, "s": "x", 4: True},
    lambda: Dict(i=1, f=1.5, s="x", b=True),
    lambda: None, lambda: [], lambda: 1 / 0, lambda: ODD[99],
    lambda: exec("raise SystemExit(3)"), lambda: exec("raise KeyboardInterrupt"),
    lambda: (_ for _ in ()).throw(ValueError("\\ud800")),
]

@view([RequestSource(schema=[Field("i", Int64)])], SCALARS)
def odd(s):
    return ODD[abs(s["i"] or 0) % len(ODD)]()

@view([S], [Attribute("list", Array(Float64)), Attribute("n", Int64)])
def vector(s):
    if s["b"]:
        return {"list": ["no number"], "n": 1}
    return {"list": [s["f"]] * 3, "n": None}

@view([L], [Attribute("n", Int64)])
def length(l):
    return {"n": len(l["list"])}

@view([S], [Attribute("n", Int64)])
def prints(s):
    print("printed", s["i"], end="" if s["b"] else "\\n")
    return {"n": s["i"]}

FeatureService(name="all", features=[echo, odd, two, vector], transform_server_group="g")
Environment(name="e", requirements="features.py")
TransformServerGroup(name="g", environment="e", scaling_config=ProvisionedScalingConfig(desired_nodes=1))
"""
TARGETS = ["echo", "two", "odd", "vector", "length", "prints", "all", "none", ""]


def row(r: random.Random) -> Dict[str, Any]:
    """Mostly one that fits."""
    fits = [("i", SCALARS[2]), ("f", SCALARS[3]), ("s", SCALARS[4]), ("b", SCALARS[1])]
    fits += [("raw", SCALARS[5]), ("when", SCALARS[6])]
    if r.random() < 0.3:
        r.shuffle(fits)
    made: Dict[str, Any] = {field: make(r) for field, make in fits}
    if r.random() < 0.2:
        made["list"] = [r.random() for _ in range(r.randrange(3))]
    odd = r.random()
    if odd < 0.1:
        made[r.choice(list(made))] = value(r)
    elif odd < 0.15:
        del made[r.choice(list(made))]
    elif odd < 0.2:
        made["f"] = r.randrange(-(2**63), 2**63)
    elif odd < 0.25:
        made[r.choice(["more", "n" * 200])] = value(r)
    elif odd < 0.3:
        made[r.choice(list(made))] = None
    return made


def answers(worker: WorkerProcess, calls: List[bytes]) -> List[Tuple[int, int, bytes]]:
    found = []
    for start in range(0, len(calls), 16):
        some = list(enumerate(calls[start : start + 16], start + 1))
        worker.sock.sendall(b"".join(frame(_frames.CALL, id, call(raw)) for id, raw in some))
        for _ in some:
            kind, request, payload = worker.receive()
            found.append((kind, request, _frames.decode_answer(payload).message))
    return found


def test_answers_agree(tmp_path: Path, module: Any) -> None:
    (tmp_path / "features.py").write_text(VIEWS)
    calls = []
    for seed in range(CALLS):
        r = random.Random(seed)
        rows = [row(r) for _ in range(r.choice([1, 1, 1, 2, 5, 20, 0]))]
        raw = _codec.encode_call_request(r.choice(TARGETS[:-2] * 5 + TARGETS[-2:]), rows)
        if r.random() < 0.1:  # a field twice, with another value
            raw += b"\x12" + varint_of(_codec.encode_row(row(r)) + _codec.encode_row(row(r)))
        calls.append(mutated(r, raw) if r.random() < 0.3 else raw)
    found = {}
    for pure in (False, True):
        worker = WorkerProcess(tmp_path, pure=pure)
        found[pure] = answers(worker, calls), worker.logs
        assert worker.end() == (0, "", "")
    for index, (native, python) in enumerate(zip(found[False][0], found[True][0])):
        assert native == python, (index, calls[index])
    assert found[False][1] == found[True][1]
    kinds = {kind for kind, _, _ in found[True][0]}
    assert kinds == {_frames.DONE, _frames.FAILED}
