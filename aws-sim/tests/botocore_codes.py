"""Reads `code status` lines; every code must be an error of botocore's service models, or one that all AWS services share."""

import gzip
import json
import sys
from pathlib import Path

import botocore

# Not in the service models: the APIs' pages "Common Errors" (AutoScaling, STS; Query protocol), and the throttling and
# outage codes of EC2's page on errors.
COMMON = {
    "ValidationError": 400,
    "Throttling": 400,
    "ServiceUnavailable": 503,
    "InvalidAction": 400,
    "IncompleteSignature": 400,
    "MissingAuthenticationToken": 403,
    "InvalidClientTokenId": 403,
    "SignatureDoesNotMatch": 403,
    "ExpiredToken": 403,
    "AccessDenied": 403,
    "UnauthorizedOperation": 403,
    "RequestLimitExceeded": 400,
}
# Refuses what is not simulated; says so in its name.
OURS = {"NotSimulated": 400}


def modelled(service):
    """Code to status of every error shape of the newest model."""
    folder = sorted((Path(botocore.__file__).parent / "data" / service).iterdir())[-1]
    model = json.loads(gzip.decompress((folder / "service-2.json.gz").read_bytes()))
    shapes = [shape for shape in model["shapes"].values() if shape.get("exception")]
    return {shape["error"]["code"]: shape["error"]["httpStatusCode"] for shape in shapes}


known = {**COMMON, **modelled("sts"), **modelled("autoscaling"), **OURS}
lines = [line.split() for line in sys.stdin]
for code, status in lines:
    assert code in known, f"{code} is no error code of AWS"
    assert known[code] == int(status), f"{code} has status {known[code]}, not {status}"
assert len(lines) > 10, lines
print(f"{len(lines)} codes agree")
