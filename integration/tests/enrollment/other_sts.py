"""Another simulated STS, moto or ministack, that checks signatures; with two roles and a session of each.

Says on one line of JSON where it listens and who is there, then runs until its standard input ends.
"""

import json
import os
import socket
import subprocess
import sys
import time

import boto3

TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
        ],
    }
)
ALLOW = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
    }
)
SETTING_UP = 6


def serve(kind: str, port: int) -> "subprocess.Popen[bytes]":
    quiet = {"stdin": subprocess.DEVNULL, "stdout": sys.stderr, "stderr": sys.stderr}
    bare = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if kind == "moto":
        # From this many calls on it asks for signatures, as it counts.
        env = {**bare, "INITIAL_NO_AUTH_ACTION_COUNT": str(SETTING_UP)}
        command = ["moto.server", "--host", "127.0.0.1", "--port", str(port)]
    else:
        env = {**bare, "AUTH": "true", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
        command = ["ministack"]
    return subprocess.Popen([sys.executable, "-m", *command], env=env, **quiet)


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start")
            time.sleep(0.05)


def main() -> None:
    kind = sys.argv[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(kind, port)
    try:
        wait_for(port, server)
        url = f"http://127.0.0.1:{port}"
        root = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        common = {"endpoint_url": url, "region_name": "eu-central-1"}
        iam = boto3.client("iam", **common, **root)
        sts = boto3.client("sts", **common, **root)
        told = {"url": url, "roles": {}}
        for name in ("outstation-agent", "other"):
            role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)["Role"]
            iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=ALLOW)
            session = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="i-0123456789abcdef0")
            keys = session["Credentials"]
            told["roles"][name] = {
                "account": role["Arn"].split(":")[4],
                "role_id": role["RoleId"],
                "access_key_id": keys["AccessKeyId"],
                "secret_access_key": keys["SecretAccessKey"],
                "session_token": keys["SessionToken"],
            }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    finally:
        server.kill()
        server.wait()


main()
