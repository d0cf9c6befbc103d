"""moto's S3 on a port of its own, one request at a time: what is asked of it is a decision, and moto takes it in two steps."""

import json
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log(self, type, message, *args):
        pass


def one_at_a_time(app):
    turn = threading.Lock()

    def serve(environ, start_response):
        with turn:
            return list(app(environ, start_response))

    return serve


app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"port": server.server_port}), flush=True)
# It ends with whoever started it.
sys.stdin.read()
server.shutdown()
