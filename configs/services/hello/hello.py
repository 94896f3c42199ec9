"""Says which replica on which node answered. Needs nothing but Python 3.6."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/healthz":
            text = "ok\n"
        else:
            text = "hello from replica {} of {} on node {}\n".format(
                os.environ.get("DUGNAD_REPLICA", "?"),
                os.environ.get("DUGNAD_SERVICE", "?"),
                os.environ.get("DUGNAD_NODE", "?"),
            )
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]))
server = HTTPServer(address, Hello)
print("listening on {}:{}".format(*address), flush=True)
server.serve_forever()
