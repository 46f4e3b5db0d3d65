"""Verdicts on files: those of an evaluation, each once, whatever happens to a process or a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import small_context

from iad_r1.command import compose
from iad_r1.data.arrivals import Arrival, landing
from iad_r1.errors import ConfigError, DataError, MismatchError
from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, predict
from iad_r1.loops.inspector import Inspector
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Sample


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run with weights."""
    made = small_context(tmp_path_factory.mktemp("run"), "evaluate.max_pixels=4096")
    made.backbone.save(made.folder.checkpoint("sft"))
    made.folder.write_json("config.json", made.config.model_dump(mode="json"))
    return made


@pytest.fixture(scope="module")
def composed(context: Context) -> Config:
    """The settings of an inspection by that run."""
    return compose.compose(["stage=predict", f"init={context.folder.path}", "stage.batch_size=2"])


@pytest.fixture
def photos(context: Context, tmp_path: Path) -> Path:
    """A folder with three of its test pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, sample in enumerate(samples_of(context)):
        picture_of(sample).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def settings(composed: Config, photos: Path) -> Callable[..., Config]:
    """`settings(threshold=0.4)`: to judge that folder, with these settings of the stage."""

    def told(**stage: Any) -> Config:
        changed = composed.stage.model_copy(update={"images": str(photos), **stage})
        return composed.model_copy(update={"stage": changed})

    return told


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "outputs", "predict")


def samples_of(context: Context) -> tuple[Sample, ...]:
    return context.dataset.test["seen"][:3]


def picture_of(sample: Sample) -> Image.Image:
    assert isinstance(sample.image, Image.Image)
    return sample.image


def recorded(folder: RunFolder) -> list[dict[str, Any]]:
    lines = (folder.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_verdict_is_the_answer_of_an_evaluation_however_the_picture_is_given(
    context, photos, settings
):
    sample = samples_of(context)[0]
    asking = evaluate.open_asking(context.config, context.backbone)
    wanted = {
        shots: next(asking.answers([sample], "seen", shots))[0].completion for shots in (0, 1)
    }
    inspecting = Inspector(settings())
    pixels = np.asarray(picture_of(sample))
    for given in (photos / "0.png", str(photos / "0.png"), Image.fromarray(pixels), pixels):
        assert inspecting.inspect(given).completion == wanted[0]
    good = picture_of(sample.references[0])
    assert inspecting.inspect(pixels, [good]).completion == wanted[1] != wanted[0]
    assert inspecting.inspect(255 - pixels).completion != wanted[0]  # it does look
    several = inspecting.inspect_all(sorted(photos.iterdir()))
    assert next(several).completion == wanted[0] and len(list(several)) == 2
    turned = Image.fromarray(pixels).rotate(90, expand=True)
    turned.getexif()[0x0112] = 6  # its camera was turned; upright it is the picture
    assert inspecting.inspect(turned).completion == wanted[0]
    with pytest.raises(DataError, match=r"an array of float64 \[4, 4\]"):
        inspecting.inspect(np.zeros((4, 4)))
    with pytest.raises(DataError, match="does not exist"):
        inspecting.inspect(photos / "none.png")


def test_every_picture_has_a_line_and_one_that_is_broken_stops_no_other(
    photos, settings, folder, capsys
):
    (photos / "1b.png").write_bytes((photos / "1.png").read_bytes()[:200])
    assert predict.run(settings(), folder) == predict.UNJUDGED
    rows = {Path(row["picture"]).name: row for row in recorded(folder)}
    assert rows.keys() == {"0.png", "1.png", "1b.png", "2.png"}
    assert rows["1b.png"]["verdict"] == "unreadable" and "1b.png" in rows["1b.png"]["error"]
    kept = {row["annotated"] for row in rows.values() if "annotated" in row}
    assert kept == {f"marked/{f.name}" for f in (folder.path / "marked").iterdir()}
    said = capsys.readouterr().out
    assert "4 pictures" in said and "1 unreadable" in said and "pictures/s" in said


def test_after_a_kill_nothing_is_lost_or_judged_twice(settings, folder, monkeypatch):
    predict.run(settings(), folder)
    whole = recorded(folder)
    lines = (folder.path / "predictions.jsonl").read_text(encoding="utf-8").splitlines(True)
    (folder.path / "predictions.jsonl").write_text(lines[0] + lines[1][:30], encoding="utf-8")
    judged: list[str] = []
    honest = Inspector.judged

    def counting(self: Inspector, samples: list[Sample]) -> Any:
        judged.extend(Path(sample.id).name for sample in samples)
        return honest(self, samples)

    monkeypatch.setattr(Inspector, "judged", counting)
    predict.run(settings(), folder)
    assert judged == ["1.png", "2.png"]
    timeless = [{**row, "seconds": 0} for row in recorded(folder)]
    assert timeless == [{**row, "seconds": 0} for row in whole]
    marked = {Path(row["annotated"]).name for row in whole}
    assert {file.name for file in (folder.path / "marked").iterdir()} == marked


def test_a_run_does_not_go_on_with_other_good_pictures(photos, settings, folder):
    good = photos / "0.png"
    asked = settings()
    stage = asked.stage.model_copy(update={"references": str(good)})
    asked = asked.model_copy(update={"stage": stage})
    predict.run(asked, folder)
    predict.run(asked, folder)  # nothing has changed
    Image.open(good).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(good)
    with pytest.raises(MismatchError, match=r"0\.png has changed since the run in .* began"):
        predict.run(asked, folder)


def test_the_exit_code_tells_a_line_of_defects(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "p_yes", lambda *given: [0.4] * len(given[1]))
    codes = {}
    for least in (0.4, 0.41):
        folder = RunFolder.create(tmp_path / "outputs", "predict")
        codes[least] = predict.run(settings(threshold=least, fail_on_defect=True), folder)
    assert codes == {0.4: predict.DEFECTIVE, 0.41: 0}


def test_a_watch_judges_what_lands_once_waits_for_what_is_written_and_goes_on_after_a_stop(
    photos, settings, folder, monkeypatch, capsys
):
    image, looks = (photos / "0.png").read_bytes(), 0

    def wait(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            (photos / "new.png").write_bytes(image[:300])  # still being written
        if looks == 6:
            (photos / "new.png").write_bytes(image)
        if looks == 9:
            raise KeyboardInterrupt

    def watched(*given: Any) -> Iterator[list[Arrival]]:
        return landing(*given, wait=wait)

    monkeypatch.setattr(predict, "landing", watched)
    for again in (False, True):
        looks = 0 if not again else 6
        with pytest.raises(KeyboardInterrupt):
            predict.run(settings(watch=True, patience=1000.0), folder)
        names = [Path(row["picture"]).name for row in recorded(folder)]
        assert sorted(names) == ["0.png", "1.png", "2.png", "new.png"] and names[-1] == "new.png"
        assert not any(row["verdict"] == "unreadable" for row in recorded(folder))
    assert capsys.readouterr().out.count("4 pictures") == 2


def test_a_prompt_that_is_too_long_for_the_model_is_refused(context, photos, settings, monkeypatch):
    monkeypatch.setattr(type(context.backbone), "positions", 40)
    with pytest.raises(DataError, match=r"more than evaluate\.max_length=40"):
        Inspector(settings()).inspect(photos / "0.png")
    few = context.config.evaluate.model_copy(update={"prompt": "sc_grpo"})
    with pytest.raises(ConfigError, match="allows 0 to 1"):
        Inspector(settings().model_copy(update={"evaluate": few})).shown([photos / "0.png"] * 2)
