"""What a run shows while it works."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SHARE, LINE_GAP, LINE_SECONDS = 0.1, 2.0, 30.0


class Bar:
    """What `progress` hands out; this one shows nothing."""

    def advance(self, steps: int = 1, **scalars: float) -> None:
        """`steps` more are done; `scalars` are the latest values worth a look."""

    def skip(self, steps: int) -> None:
        """`steps` were done by an earlier process; they say nothing about the speed."""


@contextmanager
def progress(description: str, total: int) -> Iterator[Bar]:
    """A bar with elapsed time, time left and a few live numbers.

    Where stdout is no terminal (a log file, a cluster) it prints a plain line now and then
    instead: about every tenth of the way, and after 30 s of silence.
    """
    console = Console()
    if not console.is_terminal:
        yield _Lines(console, description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[scalars]}", style="cyan"),
    )
    # A long window for the speed: one GRPO step can take minutes.
    with Progress(*columns, console=console, speed_estimate_period=600) as shown:
        yield _Live(shown, shown.add_task(escape(description), total=total, scalars=""))


class _Live(Bar):
    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown, self._task = shown, task

    def advance(self, steps: int = 1, **scalars: float) -> None:
        if scalars:
            self._shown.update(self._task, scalars=escape(_scalars(scalars)))
        self._shown.advance(self._task, steps)

    def skip(self, steps: int) -> None:
        self._shown.reset(self._task, completed=steps)


class _Lines(Bar):
    def __init__(self, console: Console, description: str, total: int) -> None:
        self._console, self._description, self._total = console, description, total
        self._done = self._said = self._skipped = 0
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, **scalars: float) -> None:
        self._done += steps
        now = time.monotonic()
        silent, share = now - self._last, (self._done - self._said) / max(self._total, 1)
        due = (share >= LINE_SHARE and silent >= LINE_GAP) or silent >= LINE_SECONDS
        if due or (self._done >= self._total and self._said < self._done):
            self._say(now, scalars)

    def skip(self, steps: int) -> None:
        self._done = self._said = self._skipped = steps

    def _say(self, now: float, scalars: Mapping[str, float]) -> None:
        elapsed = now - self._start
        left = elapsed / (self._done - self._skipped) * max(self._total - self._done, 0)
        text = (
            f"{self._description} {self._done}/{self._total}  "
            f"{duration(elapsed)}, {duration(left)} left  {_scalars(scalars)}"
        )
        self._console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
        self._said, self._last = self._done, now


def _scalars(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {_short(v)}" for name, v in scalars.items())


def _short(value: float) -> str:
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """ "8 s", "6 min 12 s" or "6 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
