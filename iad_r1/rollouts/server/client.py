"""One vLLM server, seen from the trainer: requests over HTTP, with patience.

A server that cannot be reached, or that says that its engine is dead, is asked again with growing
pauses until `patience` is over. What a living server refuses is an error at once, in its words.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from iad_r1.errors import TrainingError

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0  # seconds between two tries


class Gone(Exception):
    """A server did not answer; it may be starting again."""


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class Server:
    """A server at `url`.

    Args:
        url: `http://host:port`.
        patience: seconds that it may stay away, or take for one answer.
        command: what starts it, for messages.
    """

    def __init__(self, url: str, patience: float, command: str) -> None:
        self.url, self.patience, self.command = url, patience, command
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._open: set[HTTPConnection] = set()
        self._lock = threading.Lock()

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer to one request, decoded; a GET if there is no body.

        Gone if the server is not there; TrainingError with its own words if it refuses.
        """
        status, text = self._ask(path, body)
        if status == 200:
            return json.loads(text) if text else None
        said = f"{self.url}{path} answered {status}: {_message(text)}"
        if status >= 500 and (path == "/health" or not self.is_healthy()):
            raise Gone(said)
        raise TrainingError(
            f"the rollout server refused a request. {said} Checkpoints are intact; if memory ran "
            f"out, start it with a lower rollout.memory or rollout.max_num_seqs: {self.command}"
        )

    def is_healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        try:
            self.ask("/health")
        except Gone:
            return False
        return True

    def patiently(self, attempt: Callable[[], T], stop: threading.Event | None = None) -> T:
        """What `attempt` returns, tried again while the server is gone.

        TrainingError when it stays away; Stopped when `stop` is set meanwhile.
        """
        deadline, pause = time.monotonic() + self.patience, FIRST_PAUSE
        stop = stop or threading.Event()
        while True:
            try:
                return attempt()
            except Gone as why:
                if stop.is_set():
                    raise Stopped from None
                if time.monotonic() >= deadline:
                    raise self._away(why) from None
            if stop.wait(min(pause, max(0.0, deadline - time.monotonic()))):
                raise Stopped
            pause = min(2 * pause, LONGEST_PAUSE)

    def hang_up(self) -> None:
        """End all requests under way; the server gives them up too."""
        with self._lock:
            for connection in self._open:
                if connection.sock is not None:
                    with suppress(OSError):  # it has ended by itself
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _away(self, why: Gone) -> TrainingError:
        return TrainingError(
            f"the rollout server {self.url} did not answer for {self.patience:g} s ({why}). "
            f"Checkpoints are intact. Start it again: {self.command}; then go on with the same "
            "command and resume=auto. If it is only slow, raise rollout.patience."
        )

    def _ask(self, path: str, body: Any) -> tuple[int, bytes]:
        connection = self._connect(self.host, self.port, timeout=self.patience)
        with self._lock:
            self._open.add(connection)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body).encode(), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException) as error:
            raise Gone(f"{type(error).__name__}: {error}") from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def _message(text: bytes) -> str:
    """What an error's body says: vLLM's message where it has one."""
    try:
        found = json.loads(text)
        return str(found.get("error", found).get("message", found))
    except (ValueError, AttributeError):
        return text.decode(errors="replace").strip() or "nothing"
