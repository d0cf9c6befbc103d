"""Plain grpcio as its documentation shows it: sync, a pool of 16 threads."""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import messages

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--generated", required=True, type=Path)
    arguments = parser.parse_args()
    pb = messages.generated(arguments.generated)
    sys.path.insert(0, str(HERE.parent / "bundle"))
    import payments

    call = messages.caller(pb, {"small": payments.score, "spin_1ms": payments.burn})
    handler = grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=pb.CallRequest.FromString,
        response_serializer=pb.CallResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("outstation.transform.v1.Transform", {"Call": handler})]
    )
    server.add_insecure_port(arguments.listen)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
