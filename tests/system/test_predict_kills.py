"""A predict, and an evaluation of a model of ours, that is killed and started again says of every
picture what a calm run says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def photos(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test pictures as files, of which one is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number, sample in enumerate(tiny_run.pictures):
        assert isinstance(sample.image, Image.Image)
        sample.image.save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no picture")
    return folder


def verdicts(place: Path) -> list[str]:
    found = list((place / "outputs" / "predict").glob("*/predictions.jsonl"))
    return found[0].read_text(encoding="utf-8").split("\n")[:-1] if found else []


def answers(place: Path) -> list[str]:
    files = sorted((place / "outputs").glob("*/*/predictions/*.jsonl"))
    return [line for file in files for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_predict_that_is_killed_loses_and_repeats_nothing(tiny_run, photos, killed, tmp_path):
    typed = ["stage=predict", f"init={tiny_run.folder}", f"images={photos}", "stage.batch_size=1"]
    for place, after in ((tmp_path / "calm", ()), (tmp_path / "killed", (1, 4, 9))):
        # one picture cannot be read
        assert killed(typed, place, verdicts, *after) == 3, (place / "log.txt").read_text()
        assert len(list((place / "outputs" / "predict").iterdir())) == 1
    ours, theirs = (
        [{**json.loads(line), "seconds": 0} for line in verdicts(tmp_path / place)]
        for place in ("killed", "calm")
    )
    assert ours == theirs and len(ours) == len(list(photos.iterdir()))


def test_an_evaluation_that_is_killed_loses_and_repeats_nothing(tiny_run, killed, tmp_path):
    typed = [
        "stage=evaluate", f"init={tiny_run.folder}", *tiny_run.typed,
        "evaluate.batch_size=2", "evaluate.shots=[0,1]", "tracking=none", "engine.ranks=1",
    ]  # fmt: skip
    for place, after in ((tmp_path / "calm", ()), (tmp_path / "killed", (1, 7, 18, 30))):
        assert killed(typed, place, answers, *after) == 0, (place / "log.txt").read_text()
    calm, ours = (
        {
            file.name: file.read_bytes()
            for file in (tmp_path / place).glob("outputs/*/*/predictions/*")
        }
        for place in ("calm", "killed")
    )
    assert ours == calm and len(answers(tmp_path / "calm")) == 2 * len(tiny_run.pictures)
