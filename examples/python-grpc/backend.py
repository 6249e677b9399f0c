#!/usr/bin/python3
"""A service behind GoShield that speaks gRPC, and pushes to devices.

A device asks to be reminded, and is pushed the text later. With `goshield up` running in this
directory (Debian: apt-get install python3-grpcio python3-protobuf):

    /usr/bin/python3 examples/python-grpc/backend.py --listen 127.0.0.1:9002 --secret-file .goshield/secrets/backend
    goshield config set services.remind '{"protocol":"grpc","endpoints":["127.0.0.1:9002"]}'
    goshield send --mac 00:1a:2b:3c:4d:5e --service remind --interactive
    {"after_ms":2000,"text":"tea"}
    {"reminding": true}
    push remind {"text": "tea"}

backend_pb2.py is generated from sdk/backend/backend.proto (scripts/generate), whose comments are
the documentation of what travels.
"""

import argparse
import hmac
import json
import queue
import signal
import threading
from concurrent import futures

import grpc

import backend_pb2

MAX_AFTER_MS = 600_000
MAX_WAITING = 1000  # reminders
MAX_GATEWAYS = 32  # each holds one worker, for its stream of pushes
PUSH_TIME = 10.0  # seconds for one gateway to tell what became of a push


class Gateway:
    """One gateway's stream of pushes."""

    def __init__(self):
        self._lock = threading.Lock()
        self._out = queue.Queue(MAX_WAITING)
        self._waiting = {}  # id -> Future
        self._last_id = 0

    def push(self, client_id, service, body):
        """Returns an Outcome; raises if it is not known what became of it."""
        result = futures.Future()
        with self._lock:
            self._last_id += 1
            push_id = self._last_id
            self._waiting[push_id] = result
        try:
            self._out.put_nowait(backend_pb2.PushRequest(id=push_id, client_id=client_id, service=service, body=body))
            return result.result(PUSH_TIME)
        finally:
            with self._lock:
                self._waiting.pop(push_id, None)

    def requests(self):
        """What to send to the gateway, until close."""
        while True:
            request = self._out.get()
            if request is None:
                return
            yield request

    def receive(self, results):
        """Passes results on until the stream ends."""
        try:
            for r in results:
                with self._lock:
                    result = self._waiting.pop(r.id, None)
                if result:
                    result.set_result(r.outcome)
        except grpc.RpcError:
            pass  # the gateway is gone
        finally:
            self.close()

    def close(self):
        try:
            self._out.put_nowait(None)
        except queue.Full:
            pass  # what is queued comes first, and finds the stream ended


class Backend:
    """goshield.backend.v1.Backend"""

    def __init__(self, secrets):
        self._secrets = secrets
        self._lock = threading.Lock()
        self._gateways = set()
        self._waiting = 0

    def handle(self, request, context):
        self._authorize(context)
        try:
            wish = json.loads(request.body)
            after, text = wish["after_ms"], wish["text"]
            ok = isinstance(after, int) and 0 <= after <= MAX_AFTER_MS and isinstance(text, str)
        except (ValueError, TypeError, KeyError):
            ok = False
        if not ok:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, 'want {"after_ms": 0 to %d, "text": "..."}' % MAX_AFTER_MS)
        with self._lock:
            full = self._waiting >= MAX_WAITING
            self._waiting += not full
        if full:
            context.abort(grpc.StatusCode.UNAVAILABLE, "too many reminders are waiting")
        body = json.dumps({"text": text}).encode()
        timer = threading.Timer(after / 1000, self._remind, (request.client_id, request.service, body))
        timer.daemon = True
        timer.start()
        return backend_pb2.HandleResponse(body=b'{"reminding": true}')

    def push(self, results, context):
        self._authorize(context)
        gateway = Gateway()
        with self._lock:
            self._gateways.add(gateway)
        context.add_callback(gateway.close)
        threading.Thread(target=gateway.receive, args=(results,), daemon=True).start()
        try:
            yield from gateway.requests()
        finally:
            with self._lock:
                self._gateways.discard(gateway)

    def _remind(self, client_id, service, body):
        """Asks each gateway in turn until one has the device."""
        with self._lock:
            self._waiting -= 1
            gateways = list(self._gateways)
        for gateway in gateways:
            try:
                outcome = gateway.push(client_id, service, body)
            except (futures.TimeoutError, queue.Full):
                continue
            if outcome != backend_pb2.OUTCOME_NOT_CONNECTED:
                return

    def _authorize(self, context):
        shown = dict(context.invocation_metadata()).get("authorization", "").encode()
        if not any(hmac.compare_digest(shown, b"Bearer " + s) for s in self._secrets):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "show the gateways' secret as a bearer token")

    def service(self):
        return grpc.method_handlers_generic_handler(
            "goshield.backend.v1.Backend",
            {
                "Handle": grpc.unary_unary_rpc_method_handler(
                    self.handle, backend_pb2.HandleRequest.FromString, backend_pb2.HandleResponse.SerializeToString),
                "Push": grpc.stream_stream_rpc_method_handler(
                    self.push, backend_pb2.PushResult.FromString, backend_pb2.PushRequest.SerializeToString),
            },
        )


def main():
    parser = argparse.ArgumentParser(description="A service behind GoShield over gRPC")
    parser.add_argument("--listen", default="127.0.0.1:9002", metavar="HOST:PORT")
    parser.add_argument("--secret-file", required=True, help="the gateways' secret; each line is one that is valid")
    args = parser.parse_args()
    with open(args.secret_file, "rb") as f:
        secrets = [line.strip() for line in f if line.strip()]
    if not secrets:
        parser.error("--secret-file: %s is empty" % args.secret_file)
    server = grpc.server(futures.ThreadPoolExecutor(MAX_GATEWAYS + 8))
    server.add_generic_rpc_handlers((Backend(secrets).service(),))
    port = server.add_insecure_port(args.listen)
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(2))
    print("listening on %s:%d" % (args.listen.rsplit(":", 1)[0], port), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
