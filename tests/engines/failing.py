"""A proxy between a client and a server with an interface like OpenAI's, which fails in the ways of
services."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from serving import run_py

from iad_r1.store.run_folder import RunFolder

FAULTS = ("429", "500", "time-out", "cut off", "no JSON", "no reply in it")  # no replies
SPOILT = ("cut reply", "malformed reply")


def spoilt(reply: bytes, fault: str) -> bytes:
    """A reply that is one, and of no use."""
    found = json.loads(reply)
    [choice] = found["choices"]
    if fault == "cut reply":
        choice["finish_reason"] = "length"
    else:
        choice["message"]["content"] = "Sure! It is fine."
    return json.dumps(found).encode()


class Proxy:
    """Between a client and the server. It holds request number `hold` until its client is gone,
    and then fails once in each way, at every second request. `SPOILT` are replies that are paid."""

    def __init__(self, port: int, faults: Sequence[str], hold: int) -> None:
        self.hold: int | None = hold
        self.held = threading.Event()
        self.faults = list(faults)
        self.asked: list[str] = []  # what each request was, by its hash
        self.answered: Counter[str] = Counter()
        lock, proxy = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                digest = hashlib.sha256(body).hexdigest()
                with lock:
                    number, held = len(proxy.asked), proxy.hold is not None
                    proxy.asked.append(digest)
                    fails = number % 2 == 0 and not held and proxy.faults
                    fault = proxy.faults.pop(0) if fails else ""
                if proxy.hold == number:
                    proxy.held.set()
                    fault = "time-out"
                if fault == "time-out":
                    with contextlib.suppress(OSError):
                        self.rfile.read(1)  # until the client has gone
                    self.close_connection = True
                elif fault == "429":
                    self.send(429, b"{}", ("Retry-After", "0.1"))
                elif fault == "500":
                    self.send(500, b"oops")
                elif fault == "no JSON":
                    self.send(200, b"<html>welcome</html>")
                elif fault == "no reply in it":
                    self.send(200, b'{"choices": []}')
                else:
                    status, found = self.forward(body)
                    if fault in SPOILT:
                        found = spoilt(found, fault)
                    self.send(status, found, cut=fault == "cut off")
                    if status == 200 and fault in ("", *SPOILT):
                        with lock:
                            proxy.answered[digest] += 1

            def forward(self, body: bytes) -> tuple[int, bytes]:
                server = HTTPConnection("127.0.0.1", port)
                names = ("Authorization", "Content-Type")
                headers = {name: self.headers[name] for name in names if name in self.headers}
                server.request("POST", self.path, body, headers)
                answer = server.getresponse()
                return answer.status, answer.read()

            def send(self, status: int, body: bytes, *more: tuple[str, str], cut: bool = False):
                self.send_response(status)
                for name, value in (("Content-Length", str(len(body))), *more):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = cut

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def killed_while_asking(typed: Sequence[str], place: Path, proxy: Proxy) -> RunFolder:
    """The run of a command that was killed, with all it had started, when the proxy held one of its
    requests. Then the proxy holds no more."""
    process = run_py(*typed, cwd=place)
    assert proxy.held.wait(300), (place / "output.txt").read_text()
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    proxy.hold = None
    [path] = (place / "outputs").glob("*/*-*")
    return RunFolder.open(path)
