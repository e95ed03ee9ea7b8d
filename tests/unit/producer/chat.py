"""A server of chat completions on the loopback, which answers as a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FINDINGS = {
    "Caption": 'An astronaut in orange stands before a flag. A patch says "NASA".',
    "Image Type": "photograph",
    "Image Style": "studio portrait",
    "Watermark List": [],
    "Abnormal Element": "no",
}
FUSED = {"Fused Caption": 'Eileen Collins in orange stands before a flag. A patch says "NASA".'}


def completion(content: str | None, finish: str = "stop", **message: Any) -> bytes:
    """The body of an answer."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


@dataclass
class Reply:
    """What is sent. With `cut` the connection ends after so many bytes of the body."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def good(request: dict[str, Any]) -> Reply:
    """A whole answer to either question."""
    found = FINDINGS if has_picture(request) else FUSED
    return Reply(completion(f"A person before a flag...\n{json.dumps(found)}"))


def has_picture(request: dict[str, Any]) -> bool:
    return isinstance(request["messages"][0]["content"], list)


@dataclass
class Chat:
    """`url` is where it listens; `requests` holds what it was asked, `headers` with what."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def pictures(self) -> list[str]:
        """The data URLs of the pictures it was shown, in the order of asking."""
        first = [request["messages"][0]["content"] for request in self.requests]
        return [content[0]["image_url"]["url"] for content in first if isinstance(content, list)]


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply], tls: Any = None) -> Iterator[Chat]:
    """A server that answers each request with what `answer` makes of it, a thread each; over TLS with a context."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                chat.requests.append(request)
                chat.headers.append(dict(self.headers) | {"path": self.path})
            reply = answer(request)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are part of the test."""

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    chat = Chat(f"{scheme}://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
