"""`stage=expert_ad`, killed and gone on with, ends with the files of an uninterrupted run."""

from __future__ import annotations

import random
import time
from pathlib import Path

import forks
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SIZES = [f"data.sizes.{part}={n}" for part, n in
         (("sft", 40), ("rl", 40), ("validation", 2), ("test", 2))]  # fmt: skip
TYPED = ["stage=expert_ad", "data=synthetic", "stage.arms=true", *SIZES]


def drafts(place: Path) -> list[Path]:
    return list(place.glob("outputs/*/*/drafts.jsonl"))


def lines(place: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in drafts(place))


def content(place: Path) -> dict[str, bytes]:
    (file,) = drafts(place)
    return {
        found.relative_to(file.parent).as_posix(): found.read_bytes()
        for found in sorted(file.parent.rglob("*"))
        if found.is_file() and found.name not in (".lock", "manifest.json", "config.json")
    }


def test_killed_twice_it_ends_with_the_same_files_byte_for_byte(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for place in (calm, killed):
        place.mkdir()
    process = forks.start_run(TYPED, calm, calm / "log.txt")
    process.join()
    assert process.exitcode == 0, (calm / "log.txt").read_text()
    luck = random.Random(0)
    for done in (13, 45):
        process = forks.start_run([*TYPED, "resume=auto"], killed, killed / "log.txt")
        while process.exitcode is None and lines(killed) < done:
            time.sleep(0.002)
        time.sleep(luck.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9, (killed / "log.txt").read_text()
        assert done <= lines(killed) < 80
    (file,) = drafts(killed)
    assert not (file.parent / "dataset" / "sft.json").exists()
    process = forks.start_run([*TYPED, "resume=auto"], killed, killed / "log.txt")
    process.join()
    assert process.exitcode == 0, (killed / "log.txt").read_text()
    assert lines(killed) == 80
    assert content(killed) == content(calm)
