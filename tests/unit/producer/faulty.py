"""A server on loopback between a client and another server, or alone, that fails where it is told to."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Says what is to happen to a request, "" for nothing: by its path, and how often that path was asked before.
Fault = Callable[[str, int], str]


class Proxy(ThreadingHTTPServer):
    """Hands requests to the server at `port`, but for the faults."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.fault = port, _none
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _none(path: str, before: int) -> str:
    return ""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.server.fault(path, self.server.asked[path])
        self.server.asked[path] += 1
        if fault in ("500", "503", "403"):
            code = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[fault]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
            self._answer(int(fault), {"Content-Type": "application/xml"}, body)
            return
        if fault == "slow":
            time.sleep(5)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        connection.request(self.command, self.path, headers=dict(self.headers.items()))
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        drop = ("transfer-encoding", "content-length", "connection", "server", "date")
        headers = {name: value for name, value in reply.getheaders() if name.lower() not in drop}
        if self.command == "HEAD":
            headers["Content-Length"] = reply.getheader("Content-Length") or "0"
        self._answer(reply.status, headers, body, short=fault == "short")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes, short: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if short else body)
        self.close_connection = True


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[Any]:
    """`server` on a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
