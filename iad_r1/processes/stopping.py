"""How Ctrl-C and SIGTERM reach the process that works on a run: as an exception, where it is heard.

Python raises it between any two lines, also in libraries that keep exceptions to themselves. While
a module is imported it would turn into another error, or into nothing; so it waits for the end of
the import. In `__del__` and in callbacks of weak references it would be printed and forgotten; so
it is raised again. While a process starts, it is held back.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from iad_r1.errors import Terminated

ENDING = {signal.SIGINT, signal.SIGTERM}
AGAIN = 0.05  # seconds until a stop that came at a bad time comes again
_told: list[int] = []  # what was raised: a run that is being stopped, or over, is told nothing


@contextmanager
def signals_held_back() -> Iterator[None]:
    """A process that is started inside gets Ctrl-C and SIGTERM only from its `let_signals_in` on:
    before that it imports, and would end with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_raised() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt and SIGTERM raises Terminated, once; so do those that
    came since this process was started. Afterwards neither does anything."""
    for number in ENDING:
        signal.signal(number, _stop)
    sys.unraisablehook = _unheard
    try:
        let_signals_in()
        yield
    finally:
        _told.append(0)


@contextmanager
def signals_answered(end: Callable[[int], NoReturn]) -> Iterator[None]:
    """Inside `signals_raised`, around slow imports: Ctrl-C and SIGTERM call `end` with their
    number, which ends the process there and then. Nothing has been done that could be lost."""

    def answer(number: int, _frame: FrameType | None) -> None:
        if not _told:
            _told.append(number)
            end(number)

    before = {number: signal.signal(number, answer) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def let_signals_in() -> None:
    """Take the signals that came since this process was started, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def say_stopped(folder: Path) -> None:
    """To the user who stopped a run."""
    print(
        f"\nstopped. What was written stays in {folder}; the same command with resume=auto goes "
        "on from there.",
        file=sys.stderr,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    if _told:
        return
    if _importing(frame):
        _send_again(number)
        return
    _told.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unheard(raised: Any) -> None:
    """For `sys.unraisablehook`: what was raised where nothing can catch it."""
    if isinstance(raised.exc_value, KeyboardInterrupt | Terminated) and _told:
        _send_again(_told.pop(0))
        return
    sys.__unraisablehook__(raised)


def _send_again(number: int) -> None:
    timer = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    timer.daemon = True  # a process that has ended by itself does not wait for it
    timer.start()
