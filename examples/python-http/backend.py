#!/usr/bin/python3
"""A service behind GoShield that speaks plain HTTP: Python's standard library only.

It keeps each device's last reading. With `goshield up` running in this directory:

    python3 examples/python-http/backend.py --listen 127.0.0.1:9001 --secret-file .goshield/secrets/backend
    goshield config set services.readings '{"protocol":"http","endpoints":["127.0.0.1:9001"],"health_path":"/healthz"}'
    goshield send --mac 00:1a:2b:3c:4d:5e --service readings '{"kwh":7}'
    {"previous": null, "stored": {"kwh": 7}}

What travels is in docs/PROTOCOL.md, section 3: the gateway has checked the device's token
before it asks, so Goshield-Client-Id is who the device is.
"""

import argparse
import hmac
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 65535  # no frame is longer
MAX_DEVICES = 100_000


class Readings:
    """The last reading of each device."""

    def __init__(self):
        self._lock = threading.Lock()
        self._last = {}

    def store(self, device, reading):
        """Returns the reading before; KeyError if there are too many devices."""
        with self._lock:
            if device not in self._last and len(self._last) >= MAX_DEVICES:
                raise KeyError(device)
            previous = self._last.get(device)
            self._last[device] = reading
            return previous


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the gateway keeps its connections
    timeout = 60  # seconds without a request
    # An answer's headers and body are two writes: without this the second waits for an acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self):
        self.answer(200 if self.path == "/healthz" else 404, {})

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True  # the body is not read
            return self.answer(413, {"error": "a Content-Length of at most %d is needed" % MAX_BODY})
        body = self.rfile.read(int(length))
        if not self.authorized():
            return self.answer(401, {"error": "show the gateways' secret"})
        if self.path != "/readings":
            return self.answer(404, {"error": "no such service"})
        try:
            reading = json.loads(body)  # of version 2 devices, too, which here send JSON
        except ValueError:
            return self.answer(400, {"error": "a reading is JSON"})
        try:
            previous = self.server.readings.store(self.headers["Goshield-Client-Id"], reading)
        except KeyError:
            return self.answer(503, {"error": "too many devices"})
        return self.answer(200, {"previous": previous, "stored": reading})

    def authorized(self):
        shown = self.headers.get("Authorization", "").encode()
        return any(hmac.compare_digest(shown, b"Bearer " + s) for s in self.server.secrets)

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass  # one line a request is too many


class Server(ThreadingHTTPServer):
    daemon_threads = True  # one for each connection that a gateway keeps


def main():
    parser = argparse.ArgumentParser(description="A service behind GoShield over HTTP")
    parser.add_argument("--listen", default="127.0.0.1:9001", metavar="HOST:PORT")
    parser.add_argument("--secret-file", required=True, help="the gateways' secret; each line is one that is valid")
    args = parser.parse_args()
    host, port = args.listen.rsplit(":", 1)
    server = Server((host, int(port)), Handler)
    with open(args.secret_file, "rb") as f:
        server.secrets = [line.strip() for line in f if line.strip()]
    if not server.secrets:
        parser.error("--secret-file: %s is empty" % args.secret_file)
    server.readings = Readings()
    # shutdown waits for serve_forever, which this thread runs.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("listening on %s:%d" % server.server_address[:2], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    server.server_close()


if __name__ == "__main__":
    main()
