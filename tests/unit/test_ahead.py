"""What is prepared on other threads is what the caller's own thread would have made."""

from __future__ import annotations

import threading
import time

import pytest

from iad_r1.data import images
from iad_r1.data.ahead import Ahead
from iad_r1.errors import DataError

PATIENCE = 20  # seconds until a thread that should have done something has failed


def late(number: int) -> int:
    """Later items are finished first."""
    time.sleep(0.002 * (5 - number))
    return number * number


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_batch_comes_in_its_order_whoever_is_finished_first(threads):
    with Ahead(late, threads) as squares:
        assert squares.take([0, 1, 2], then=[3, 4]) == [0, 1, 4]
        assert squares.take([3, 4], then=[1]) == [9, 16]
        assert squares.take([1]) == [1]


def test_the_next_batch_is_made_while_a_batch_is_in_use_and_no_batch_after_it():
    made: list[int] = []
    enough = threading.Semaphore(0)

    def make(number: int) -> int:
        made.append(number)
        enough.release()
        return number

    with Ahead(make, 2) as numbers:
        numbers.take([1], then=[2, 3])
        assert all(enough.acquire(timeout=PATIENCE) for _ in range(3))  # nobody has asked for them
        assert numbers.take([2, 3], then=[4]) == [2, 3]
    assert sorted(made)[:3] == [1, 2, 3] and made.count(2) == made.count(3) == 1
    assert set(made) <= {1, 2, 3, 4}


def test_another_batch_than_was_begun_is_made_as_asked_and_leaves_the_begun_one():
    with Ahead(late, 2) as squares:
        squares.take([0], then=[1, 2])
        begun = squares.begun
        assert squares.take([4]) == [16] and squares.begun is begun
        assert squares.take([3], then=[2]) == [9]  # begun for nothing
        assert squares.take([2]) == [4]


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_an_error_ends_the_batch_that_it_belongs_to_and_the_first_one_counts(threads):
    def make(number: int) -> int:
        if number >= 2:
            time.sleep(0.02 if number == 2 else 0)  # 3 fails before 2 does
            raise DataError(f"{number}.png: this image cannot be read.")
        return number

    with Ahead(make, threads) as numbers:
        assert numbers.take([0, 1], then=[1, 2, 3]) == [0, 1]
        with pytest.raises(DataError, match=r"^2\.png: this image cannot be read\.$"):
            numbers.take([1, 2, 3])


def test_an_error_of_the_caller_ends_what_is_begun():
    begun, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def make(number: int) -> None:
        made.append(number)
        if number:
            begun.set()
            assert go_on.wait(PATIENCE)

    def interrupted(numbers: Ahead[int, None]) -> None:
        with numbers:
            numbers.take([0], then=range(1, 100))
            assert begun.wait(PATIENCE)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(Ahead(make, 1))
    assert made == [0, 1]


def test_a_picture_that_several_threads_ask_for_at_once_is_decoded_once(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    decoded: list[object] = []

    def upright(path: object) -> object:
        decoded.append(path)
        time.sleep(0.05)  # the others come meanwhile
        raise DataError("broken") if len(decoded) == 1 else AssertionError

    monkeypatch.setattr(images, "upright", upright)
    memory = images._Remembered(limit=1)
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(DataError) as caught:
            memory.get(tmp_path / "a.png")
        said.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1 and said == ["broken"] * 6
