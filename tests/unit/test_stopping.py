"""A stop is heard once, wherever it comes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from iad_r1.errors import Terminated
from iad_r1.learn import saving
from iad_r1.processes import stopping

STOPS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
# What a library does that can go without an optional part of itself.
LIBRARY = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.2)
    whole = True
except BaseException:
    whole = False
"""


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(stopping, "_told", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in stopping.ENDING}
    yield
    for thread in threading.enumerate():  # nothing is on its way any more
        if isinstance(thread, threading.Timer) and thread.function is os.kill:
            thread.join()
    work(0.05)
    for number, handler in before.items():
        signal.signal(number, handler)


def work(seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "raised"), STOPS)
def test_a_stop_is_raised_once(number, raised):
    cleaned = False
    with pytest.raises(raised), stopping.signals_raised():
        try:
            os.kill(os.getpid(), number)
            work()
        finally:
            os.kill(os.getpid(), number)
            work(0.1)
            cleaned = True
    assert cleaned


@pytest.mark.parametrize("number", stopping.ENDING)
def test_a_stop_after_the_work_is_not_raised(number):
    with stopping.signals_raised():
        pass
    os.kill(os.getpid(), number)
    work(0.1)


@pytest.mark.parametrize(("number", "raised"), STOPS)
def test_a_stop_waits_for_the_end_of_an_import_which_it_would_spoil(
    number, raised, tmp_path, monkeypatch
):
    name = f"library_stopped_by_{number.name.lower()}"
    (tmp_path / f"{name}.py").write_text(LIBRARY.format(name=number.name))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(raised), stopping.signals_raised():
        assert __import__(name).whole
        work()


class Left(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("number", stopping.ENDING)
def test_a_stop_while_slow_modules_are_imported_is_answered_at_once_and_once(number):
    asked: list[int] = []

    def end(given: int) -> NoReturn:
        asked.append(given)
        os.kill(os.getpid(), number)
        work(0.1)
        raise Left

    with pytest.raises(Left), stopping.signals_raised(), stopping.signals_answered(end):
        os.kill(os.getpid(), number)
        work()
    assert asked == [number]


@pytest.mark.parametrize(("number", "raised"), STOPS)
def test_a_stop_after_those_imports_is_raised(number, raised):
    def never(given: int) -> NoReturn:
        raise AssertionError(given)

    with pytest.raises(raised), stopping.signals_raised():
        with stopping.signals_answered(never):
            pass
        os.kill(os.getpid(), number)
        work()


@pytest.mark.parametrize(("number", "raised"), STOPS)
def test_a_stop_that_python_cannot_pass_on_comes_again(number, raised):
    class Finalised:
        heard = False

        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            work(0.2)
            Finalised.heard = True  # not reached

    with pytest.raises(raised), stopping.signals_raised():
        Finalised()
        assert not Finalised.heard
        work()


def test_what_else_python_cannot_pass_on_is_shown_as_ever(capsys):
    class Broken:
        def __del__(self) -> None:
            raise ValueError("of no stop")

    with stopping.signals_raised():
        Broken()
    assert "ValueError: of no stop" in capsys.readouterr().err


def test_what_came_while_the_process_started_is_raised_then():
    with stopping.signals_held_back():
        # to this thread: others of this process were started with the signal let in
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        work(0.1)
        with pytest.raises(Terminated), stopping.signals_raised():
            work()


def test_sigterm_after_the_last_step_of_a_stage_ends_the_run_all_the_same():
    with stopping.signals_raised():
        with pytest.raises(Terminated), saving._terminate_later() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            work(0.1)
        assert asked == [signal.SIGTERM]
