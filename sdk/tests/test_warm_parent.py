"""Loading in one process, serving in children of it, as a warm parent does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HEAD, PATIENCE_SECS, call, child_env, frame, outcomes

from outstation import _codec, _frames

PARENT = """
import os, socket, sys
from outstation import worker
from outstation._capture import Capture
bundle, pure, takes, *descriptors = sys.argv[1:]
capture = Capture()
capture.install()
loaded = worker.load_bundle(bundle, capture)
if int(takes):
    os.write(2, b"|".join(capture.take()))
for descriptor in map(int, descriptors):
    if capture.fork() == 0:
        worker.serve(loaded, capture, socket.socket(fileno=descriptor), None, bool(int(pure)))
        os._exit(0)
    os.close(descriptor)
    os.wait()
"""
VIEWS = HEAD + """
import os
print("importing")

@realtime_feature_view(sources=[RequestSource(schema=[Field("x", Int64)])], mode="python",
                       features=[Attribute("y", Int64)])
def forks(source):
    print("x is", source["x"])
    return {"y": int(os.fork() > 0)}
"""


@pytest.mark.parametrize("takes", [False, True])
def test_workers_of_one_parent(tmp_path: Path, pure: bool, takes: bool) -> None:
    (tmp_path / "features.py").write_text(VIEWS)
    pairs = [socket.socketpair() for _ in range(2)]
    theirs = [pair[1].fileno() for pair in pairs]
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(int(pure)), str(int(takes))]
    process = subprocess.Popen(
        command + [str(each) for each in theirs], pass_fds=theirs, env=child_env(), stderr=subprocess.PIPE
    )
    for ours, other in pairs:
        other.close()
        ours.settimeout(PATIENCE_SECS)
        ours.sendall(frame(_frames.CALL, 7, call(_codec.encode_call_request("forks", [{"x": 3}]))))
        frames = _frames.Frames(ours)
        assert frames.read() == (_frames.READY, 0, _codec.encode_targets([_codec.Target("forks", 1, ("forks",))]))
        lines = []
        while (found := frames.read()) is not None and found[0] == _frames.LOG:
            lines.append((found[1], json.loads(found[2])["text"]))
        assert lines == ([] if takes else [(0, "importing")]) + [(7, "x is 3")]
        assert found is not None and outcomes(found[0], found[2]) == [{"forks.y": 1}]
        ours.close()
    _, err = process.communicate(timeout=PATIENCE_SECS)
    assert process.returncode == 0 and (b"importing" in err) == takes
