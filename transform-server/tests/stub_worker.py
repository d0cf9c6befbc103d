"""A worker without the SDK, for behaviour that no honest bundle shows.

Arguments: --fd N --marks-fd M --bundle DIR. `DIR/mode` changes how it starts; the target's name says what a call does.
"""

import json
import mmap
import os
import select
import socket
import struct
import sys
import time

READY, DONE, FAILED, LOG, SKIPPED, CALL = 1, 2, 3, 4, 5, 16
TARGETS = ["echo", "gate", "hang", "die", "garbage", "wrong_id", "fail", "log", "fork_die", "env", "big"]

args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
bundle = args["--bundle"]
sock = socket.socket(fileno=os.dup(int(args["--fd"])))
marks = mmap.mmap(int(args["--marks-fd"]), 4096 + (256 << 10))
held = b""


def mode():
    try:
        with open(os.path.join(bundle, "mode")) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def send(kind, request, payload=b""):
    sock.sendall(struct.pack("<IBQ", 9 + len(payload), kind, request) + payload)


def running(request):
    marks[0:8] = struct.pack("=Q", request)


def flush():
    global held
    sock.sendall(held)
    held = b""
    marks[8:16] = struct.pack("=Q", 0)


def done(request, payload):
    """Sends the answer, after those that were held back."""
    flush()
    send(DONE, request, struct.pack("<QQ", 1000, 500) + payload)


def hold(request, payload):
    """Keeps the answer back, where the server can see it."""
    global held
    body = struct.pack("<QQ", 1000, 500) + payload
    held += struct.pack("<IBQ", 9 + len(body), DONE, request) + body
    marks[4096 : 4096 + len(held)] = held
    marks[8:16] = struct.pack("=Q", len(held))


def receive(count):
    data = b""
    while len(data) < count:
        piece = sock.recv(min(count - len(data), 1 << 20))
        if not piece:
            os._exit(0)
        data += piece
    return data


def wait_for(name):
    while not os.path.exists(os.path.join(bundle, name)):
        time.sleep(0.002)


def touch(name):
    with open(os.path.join(bundle, name), "a") as file:
        file.write(f"{os.getpid()}\n")


def lv(field, payload):
    out, length = bytes([field << 3 | 2]), len(payload)
    while length >= 0x80:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + payload


def targets():
    broken = lv(1, lv(1, b"broken") + b"\x10\x01" + lv(3, b"SyntaxError: line 3"))
    return b"".join(lv(1, lv(1, name.encode()) + b"\x10\x01") for name in TARGETS) + broken


if mode() == "never_ready":
    time.sleep(600)
if mode() == "exit":
    sys.stderr.write("Traceback (most recent call last):\nModuleNotFoundError: No module named 'nothere'\n")
    sys.exit(3)
if mode() == "garbage":
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    time.sleep(600)
if mode() == "gate":
    wait_for("ready")
touch("workers")
send(READY, 0, targets())

while True:
    if held and not select.select([sock], [], [], 0)[0]:
        flush()
    length, kind, request = struct.unpack("<IBQ", receive(13))
    payload = receive(length - 9)
    running(request)
    deadline, _, traced = struct.unpack_from("<QqB", payload)
    trace, payload = payload[17 : 17 + traced], payload[17 + traced :]
    if deadline and time.monotonic_ns() >= deadline:
        running(0)
        send(SKIPPED, request)
        continue
    name = payload[2 : 2 + payload[1]].decode()
    if name == "echo":
        if b"!hold" in payload:
            hold(request, payload)
        elif b"!die" in payload:
            os._exit(7)
        else:
            if b"!hang" in payload:
                wait_for("never")
            done(request, payload)
    elif name == "gate":
        touch("started")
        wait_for("open")
        done(request, payload)
    elif name == "hang":
        touch("hanging")
        while True:
            pass
    elif name == "die":
        sys.stderr.write("last words\n")
        sys.stderr.flush()
        os._exit(7)
    elif name == "fork_die":
        # A child that keeps the socket open past its parent's end.
        if os.fork() == 0:
            touch("orphan")
            time.sleep(600)
        wait_for("orphan")
        os._exit(7)
    elif name == "garbage":
        sock.sendall(b"\xff" * 64)
        time.sleep(600)
    elif name == "wrong_id":
        done(request + 1000, payload)
    elif name == "fail":
        send(FAILED, request, bytes(16) + b"\x03" + "fail: no rows, öh".encode())
    elif name == "log":
        for number in range(20000):
            line = {"level": "info", "stream": "stdout", "function": "log", "text": f"line {number}"}
            send(LOG, request, json.dumps(line).encode())
        print("printed past the capture", flush=True)
        done(request, payload)
    elif name == "env":
        fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
        state = {"env": dict(os.environ), "cwd": os.getcwd(), "trace": trace.decode(), "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in fds if os.path.lexists(f"/proc/self/fd/{fd}")]}
        done(request, json.dumps(state).encode())
    elif name == "big":
        done(request, b"x" * (65 << 20))
    else:
        send(FAILED, request, bytes(16) + b"\x05" + f"no {name}".encode())
    running(0)
