"""Functions called in a bare loop, with no server: the most that a process can give.

Prints calls a second. `spin_1ms` calls the function alone; `pandas100` also decodes the request and
encodes the response, with protobuf as generated, or with what the SDK's own worker uses.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Callable

import messages

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bundle"))
import payments  # noqa: E402

PAYMENT = {
    "amount": 182.5,
    "average_amount_30d": 61.25,
    "amount_24h": 240.75,
    "payments_1h": 2,
    "payments_24h": 5,
    "card_age_days": 412,
    "merchant_category": "electronics",
    "country": "DE",
    "home_country": "FR",
    "is_online": True,
}


def batch(request_file: Path, folder: Path) -> Callable[[], Any]:
    import pandas

    pb = messages.generated(folder)
    request = request_file.read_bytes()

    def call() -> bytes:
        rows = messages.rows_of(pb.CallRequest.FromString(request))
        frame = payments.score_frame(pandas.DataFrame.from_records(rows))
        results = frame.to_dict(orient="records")
        answer: bytes = messages.response_of(pb, "pandas100", results).SerializeToString()
        return answer

    return call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("function", choices=["spin_1ms", "pandas100"])
    parser.add_argument("--secs", type=float, required=True)
    parser.add_argument("--request", type=Path)
    parser.add_argument("--generated", type=Path)
    arguments = parser.parse_args()
    if arguments.function == "spin_1ms":
        call: Callable[[], Any] = lambda: payments.burn(dict(PAYMENT))  # noqa: E731
    else:
        call = batch(arguments.request, arguments.generated)
    until = time.monotonic() + min(0.5, arguments.secs / 4)
    while time.monotonic() < until:
        call()
    calls, began = 0, time.monotonic()
    while time.monotonic() - began < arguments.secs:
        call()
        calls += 1
    print(calls / (time.monotonic() - began))


if __name__ == "__main__":
    main()
