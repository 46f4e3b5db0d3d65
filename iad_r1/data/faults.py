"""What is wrong with the rows and files of a data set: the first fault ends a run. The doctor
wants them all, so it has readers go on behind a fault that concerns one row alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

from iad_r1.errors import DataError

Item = TypeVar("Item")
Made = TypeVar("Made")
_GATHERED: ContextVar[list[DataError] | None] = ContextVar("gathered", default=None)


@contextmanager
def of_one(where: str = "") -> Iterator[None]:
    """Around what reads one row: a fault in it ends the reading, unless faults are gathered.
    `where` names a row of JSON: a value in it of another kind than is read there is a fault too."""
    try:
        with _as_expected(where) if where else nullcontext():
            yield
    except DataError as error:
        found = _GATHERED.get()
        if found is None:
            raise
        found.append(error)


@contextmanager
def _as_expected(where: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError) as error:
        raise DataError(
            f"{where}: a value is of another kind than is read there ({error}). Correct it, or "
            "take the entry out."
        ) from error


def tell(found: Sequence[DataError], also: str = "") -> None:
    """The faults of several rows: the first ends the reading, with what there is to say of all,
    unless faults are gathered."""
    known = _GATHERED.get()
    if known is not None:
        known.extend(found)
    elif found:
        raise DataError(f"{found[0]} {also}".rstrip())


def every(make: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What is made of all items of one row. Raises the first fault of them; where faults are
    gathered, the last, and puts the others there."""
    made: list[Made] = []
    found: list[DataError] = []
    for item in items:
        try:
            made.append(make(item))
        except DataError as error:
            found.append(error)
    if found:
        tell(found[:-1])
        raise found[-1]
    return made


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
