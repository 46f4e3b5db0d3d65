"""A server with an interface like OpenAI's that answers what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[int, dict[str, Any]], tuple[int, bytes]]


def body(text: str | None, *, ended: str = "stop", usage: bool = True, **more: Any) -> bytes:
    """A reply as a service writes it: 1,000 tokens in, 10 out."""
    message = {"role": "assistant", "content": text, "refusal": more.pop("refusal", None)}
    choice = {"index": 0, "message": message, "finish_reason": ended, **more}
    counted = {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010}
    reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps(
        {**reply, "choices": [choice], **({"usage": counted} if usage else {})}
    ).encode()


class Service:
    """A server that answers request n with what `answer(n, request)` gives; n counts from 0."""

    def __init__(self) -> None:
        self.answer: Answer = lambda n, asked: (200, body(words(asked)))
        self.asked: list[dict[str, Any]] = []
        self.most = self.now = 0
        lock, service = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                asked = json.loads(self.rfile.read(length))
                with lock:
                    number = len(service.asked)
                    service.asked.append(asked | {"key": self.headers["Authorization"]})
                    service.now += 1
                    service.most = max(service.most, service.now)
                try:
                    status, sent = service.answer(number, asked)
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("retry-after-ms", "1")
                    self.send_header("Content-Length", str(len(sent)))
                    self.end_headers()
                    self.wfile.write(sent)
                finally:
                    with lock:
                        service.now -= 1

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def words(asked: dict[str, Any]) -> str:
    """What was asked, said again."""
    return "said " + asked["messages"][-1]["content"]


@contextmanager
def served() -> Iterator[Service]:
    """A service that is up."""
    made = Service()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
