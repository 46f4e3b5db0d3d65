"""A predict that is killed and started again gives every picture the one verdict of a calm run."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import forks
import pytest
from PIL import Image

from iad_r1.backbones import tiny
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.loops.opening import corpus
from iad_r1.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SIZES = [f"data.sizes.{part}=8" for part in ("sft", "rl", "validation", "test")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with tiny random weights, and a folder of pictures."""
    place = tmp_path_factory.mktemp("run")
    config = compose.compose([*SIZES, "evaluate.max_tokens=40"])
    folder = RunFolder.create(place, "before")
    folder.write_json("config.json", config.model_dump(mode="json"))
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(folder.checkpoint("sft"), corpus(config, dataset), 400, 9216, seed=0)
    photos = place / "photos"
    photos.mkdir()
    samples = [sample for split in dataset.test.values() for sample in split]
    for number, sample in enumerate(samples):
        assert isinstance(sample.image, Image.Image)
        sample.image.save(photos / f"{number:02d}.png")
    (photos / "07.png").write_bytes(b"no picture")
    return folder.path, photos


def lines(place: Path) -> list[str]:
    found = list((place / "outputs" / "predict").glob("*/predictions.jsonl"))
    return found[0].read_text(encoding="utf-8").split("\n")[:-1] if found else []


def test_killed_twice_it_loses_and_repeats_nothing(run, tmp_path):
    init, photos = run
    typed = ["stage=predict", f"init={init}", f"images={photos}", "stage.batch_size=1"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for place in (calm, killed):
        place.mkdir()
    process = forks.start_run(typed, calm, calm / "log.txt")
    process.join()
    assert process.exitcode == 3, (calm / "log.txt").read_text()  # one cannot be read
    luck = random.Random(0)
    for share in (4, 9):
        process = forks.start_run([*typed, "resume=auto"], killed, killed / "log.txt")
        while process.exitcode is None and len(lines(killed)) < share:
            time.sleep(0.002)
        time.sleep(luck.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9, (killed / "log.txt").read_text()
    process = forks.start_run([*typed, "resume=auto"], killed, killed / "log.txt")
    process.join()
    assert process.exitcode == 3, (killed / "log.txt").read_text()
    assert len(list((killed / "outputs" / "predict").iterdir())) == 1
    ours, theirs = (
        [{**json.loads(line), "seconds": 0} for line in lines(place)] for place in (killed, calm)
    )
    assert ours == theirs and len(ours) == len(list(photos.iterdir()))
