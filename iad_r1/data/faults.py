"""What is wrong with the rows and files of a data set: the first fault ends a run. The doctor
wants them all, so it has readers go on behind a fault that concerns one row alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from iad_r1.errors import DataError

_GATHERED: ContextVar[list[DataError] | None] = ContextVar("gathered", default=None)


@contextmanager
def of_one() -> Iterator[None]:
    """Around what reads one row: a fault in it ends the reading, unless faults are gathered."""
    try:
        yield
    except DataError as error:
        found = _GATHERED.get()
        if found is None:
            raise
        found.append(error)


@contextmanager
def gathered() -> Iterator[list[DataError]]:
    """Inside, the faults of single rows are put into this list, and what ends the reading is the
    last of them."""
    found: list[DataError] = []
    token = _GATHERED.set(found)
    try:
        yield found
    except DataError as error:
        found.append(error)
    finally:
        _GATHERED.reset(token)
