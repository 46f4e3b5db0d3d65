"""A tracker at arm's length: it is told everything in a thread of its own, and may fail or hang."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from iad_r1.settings.tracking import Tracked
from iad_r1.store.trackers import Backend

PENDING = 512  # messages that a tracker may be behind before it is waited for
SLACK = 5.0  # seconds on top of the timeouts that a tracker keeps itself


class Mirror:
    """Calls a backend in a thread. Whatever goes wrong there is one printed sentence.

    Args:
        name: of the tracker, for that sentence.
        open_: starts the backend; called in the thread. None if there is none to be had.
        record: what goes on without it, for the sentence.
    """

    def __init__(
        self, name: str, open_: Callable[[], Backend | None], settings: Tracked, record: str
    ) -> None:
        self._name, self._open, self._settings, self._record = name, open_, settings, record
        self._calls: queue.Queue[Callable[[Backend], Any] | None] = queue.Queue(PENDING)
        self._patience = settings.finish_timeout  # seconds, for the whole run
        self._gone = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()
        # Twice: a backend may try one way, and then another.
        if not self._opened.wait(2 * settings.init_timeout + SLACK):
            self._give_up(f"did not start within {2 * settings.init_timeout + SLACK:g} s")

    def send(self, call: Callable[[Backend], Any]) -> None:
        """Have the thread make this call. Returns at once, unless the tracker is far behind, as
        where a whole stage is taken from the store; all such waiting of a run is limited."""
        if self._gone.is_set():
            return
        begun = time.monotonic()
        try:
            self._calls.put(call, timeout=max(0.0, self._patience))
        except queue.Full:
            self._give_up(f"hangs: it is {PENDING} messages behind")
        self._patience -= time.monotonic() - begun

    def close(self, call: Callable[[Backend], Any]) -> None:
        """Make a last call, and wait until all is done, for as long as the settings allow."""
        self.send(call)
        if self._gone.is_set():
            return
        limit = self._settings.finish_timeout + SLACK
        try:
            self._calls.put(None, timeout=limit)
            self._thread.join(limit)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._give_up(f"did not finish within {limit:g} s")
        self._gone.set()

    def _work(self) -> None:
        try:
            backend = self._open()
            self._opened.set()
            while backend is not None and not self._gone.is_set():
                call = self._calls.get()
                if call is None:
                    return
                call(backend)
        except Exception as error:  # of whatever kind: the record is elsewhere and goes on
            self._give_up(f"stopped ({one_line(error)})")
        finally:
            self._gone.set()
            self._opened.set()

    def _give_up(self, what: str) -> None:
        if not self._gone.is_set():
            self._gone.set()
            say(f"{self._name} {what}; {self._record} goes on.")


def one_line(error: BaseException) -> str:
    """What an error says, short."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def say(sentence: str) -> None:
    """On stderr."""
    print(sentence, file=sys.stderr, flush=True)
