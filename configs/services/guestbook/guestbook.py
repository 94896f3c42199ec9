"""A guestbook whose entries the community keeps. Needs nothing but Python 3.6."""

import html, http.client, json, os, signal, socket, sys, time, urllib.parse
from http.server import BaseHTTPRequestHandler, HTTPServer


class Door(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["DUGNAD_SOCKET"])


def store(method, place, body=None):
    door = Door("dugnad")
    door.request(method, "/v1/store/" + os.environ["DUGNAD_SERVICE"] + place, body)
    answer = door.getresponse()
    return answer.status, answer.read()


class Guestbook(BaseHTTPRequestHandler):
    def do_GET(self):
        keys = [o["key"] for o in json.loads(store("GET", "?prefix=entry/")[1])["objects"]]
        entries = [store("GET", key[len(os.environ["DUGNAD_SERVICE"]):])[1].decode() for key in keys]
        lines = "".join("<li>" + html.escape(entry) for entry in entries)
        self.answer(200, "<form method=post><input name=text><button>sign</button></form><ul>" + lines + "</ul>\n")

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        text = urllib.parse.parse_qs(text).get("text", [""])[0]
        status = store("PUT", "/entry/{:020}-{}".format(int(time.time() * 1e6), os.environ["DUGNAD_REPLICA"]), text.encode())[0]
        self.answer(200 if status == 200 else 503, "<a href=./>" + ("thank you" if status == 200 else "not kept") + "</a>\n")

    def answer(self, status, page):
        body = page.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Guestbook).serve_forever()
