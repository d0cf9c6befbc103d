"""What a small request costs a worker: `python tests/bench_worker.py`, from this folder's parent.

Ten scalars in, five features out, over a socket pair; CPU time of the worker process, its share of
system calls included. Not a test: machines differ.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from conftest import HEAD, WorkerProcess, call, frame, outcomes

from outstation import _codec, _frames

VIEW = HEAD + """
transaction = RequestSource(schema=[
    Field("amount", Float64), Field("mean", Float64), Field("deviation", Float64), Field("count", Int64),
    Field("age_days", Int64), Field("country", String), Field("home", String), Field("night", Bool),
    Field("distance", Float64), Field("limit", Float64),
])

@realtime_feature_view(sources=[transaction], mode="python", features=[
    Attribute("z", Float64), Attribute("ratio", Float64), Attribute("abroad", Bool),
    Attribute("score", Float64), Attribute("recent", Int64),
])
def fraud(t):
    z = (t["amount"] - t["mean"]) / (t["deviation"] or 1.0)
    abroad = t["country"] != t["home"]
    score = 0.5 * z + (0.3 if abroad else 0.0) + (0.2 if t["night"] else 0.0) + t["distance"] / 1e4
    return {"z": z, "ratio": t["amount"] / t["limit"], "abroad": abroad, "score": score,
            "recent": t["count"] if t["age_days"] < 30 else 0}
"""
ROW = {
    "amount": 129.5, "mean": 80.0, "deviation": 22.5, "count": 7, "age_days": 12, "country": "PT",
    "home": "DE", "night": True, "distance": 1804.2, "limit": 2000.0,
}  # fmt: skip
CALLS = 60_000


def cpu_secs(pid: int) -> float:
    """To the nanosecond where the kernel says so."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def measure(bundle: Path, together: int, pure: bool) -> float:
    """Microseconds of CPU time for one request, the median of five runs."""
    worker = WorkerProcess(bundle, pure=pure)
    message = call(_codec.encode_call_request("fraud", [ROW]), time.monotonic_ns() + 10**12)
    one = frame(_frames.CALL, 1, message)
    answer_bytes = 0
    runs: List[float] = []
    for _ in range(6):
        before = cpu_secs(worker.process.pid)
        for _ in range(CALLS // 6 // together):
            worker.sock.sendall(one * together)
            if not answer_bytes:
                for _ in range(together):
                    kind, _, payload = worker.receive()
                    assert len(outcomes(kind, payload)[0]) == 5
                    answer_bytes += 13 + len(payload)
                continue
            missing = answer_bytes
            while missing:
                missing -= len(worker.sock.recv(missing))
        count = CALLS // 6 // together * together
        runs.append((cpu_secs(worker.process.pid) - before) / count * 1e6)
    worker.end()
    return sorted(runs[1:])[2]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "features.py").write_text(VIEW)
        sources = {"pure": True, "native": False}
        print("µs of CPU per request    " + "".join(f"{n:>4} in a frame" for n in (1, 16)))
        for name, pure in sources.items():
            print(f"{name:24}", *(f"{measure(Path(folder), n, pure):14.1f}" for n in (1, 16)))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    main()
