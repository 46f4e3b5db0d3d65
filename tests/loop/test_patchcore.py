"""Nearest good patches: what is strange, where, and from when on it counts as a defect."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iad_r1 import data, nearest, stages
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.errors import ConfigError, DataError, WeightsError
from iad_r1.grid import Grid, as_grid
from iad_r1.judge.predictions import append, read_predictions
from iad_r1.judge.verdicts import Record
from iad_r1.loops import patchcore as loop
from iad_r1.loops import pipeline, predict
from iad_r1.loops.inspector import Inspector
from iad_r1.loops.operating_point import described, threshold
from iad_r1.nearest import imagenet, patchcore
from iad_r1.nearest.patchcore import Found
from iad_r1.report import gallery, overlay
from iad_r1.settings import rules
from iad_r1.settings.config import Config
from iad_r1.settings.patchcore import Method, Patchcore
from iad_r1.store.run_folder import RunFolder, write_json
from iad_r1.types import Dataset

SETTINGS = Patchcore(beside="photographs", beside_limit=50, pictures=200, patches=1000, side=96,
                     overkill=0.0)  # fmt: skip
EDGE = 96


def part(seed: int, spot: tuple[int, int] | None = None) -> Image.Image:
    """A striped plate with sensor noise of its own; `spot` (x, y) is the corner of a dark hole."""
    stripes = 128 + 40 * np.sin(np.arange(EDGE) / 3)[:, None, None]
    noise = np.random.default_rng(seed).normal(0, 6, (EDGE, EDGE, 3))
    picture = Image.fromarray((stripes + noise).clip(0, 255).astype(np.uint8))
    if spot is not None:
        picture.paste((10, 10, 10), (*spot, spot[0] + 14, spot[1] + 14))
    return picture


@pytest.fixture(scope="module")
def good() -> patchcore.GoodPatches:
    return patchcore.remember((part(n) for n in range(6)), SETTINGS, seed=0)


@pytest.mark.parametrize(("spot", "cell"), [((6, 6), 0), ((76, 42), 5), ((42, 78), 7)])
def test_a_hole_is_found_and_placed_and_another_good_part_passes(good, spot, cell):
    defective, sound = good.judge(part(50, spot)), good.judge(part(50))
    assert defective.defective and not good.judge(part(50)).score > 1.5
    assert defective.score > 2 * sound.score
    assert defective.cell(Grid(3, 3)) == cell
    assert defective.heat.shape == (EDGE // 8, EDGE // 8)


def test_the_threshold_is_a_quantile_of_good_pictures_each_against_the_others(good):
    """By hand, on all patches, so that none is left to chance."""
    pictures = [part(n) for n in range(4)]
    settings = SETTINGS.model_copy(update={"patches": 10_000})
    all_patches = patchcore.described(pictures, EDGE)
    scores = []
    for number, own in enumerate(all_patches):
        others = torch.cat([p for i, p in enumerate(all_patches) if i != number])
        far = (own[:, None] - others[None]).norm(dim=2).min(1).values
        scores.append(far.max().item())  # 1 % of 144 patches is one
    strict = patchcore.remember(pictures, settings, seed=0)
    assert strict.threshold == pytest.approx(max(scores), rel=1e-3)
    half = settings.model_copy(update={"overkill": 50.0})
    assert patchcore.remember(pictures, half, 0).threshold == pytest.approx(
        sorted(scores)[2], rel=1e-3
    )


def test_a_remembered_picture_is_like_itself(good):
    assert patchcore.remember([part(n) for n in range(2)], SETTINGS, 0).judge(part(1)).score < 0.1


def test_pictures_that_are_all_the_same_make_any_difference_a_defect():
    same = patchcore.remember([part(0)] * 2, SETTINGS, seed=0)
    assert same.threshold > 0 and not same.judge(part(0)).defective
    assert same.judge(part(1)).defective


def test_a_seed_gives_the_same_patches_and_leaves_other_random_numbers_alone(good):
    before = torch.get_rng_state()
    again = patchcore.remember((part(n) for n in range(6)), SETTINGS, seed=0)
    assert torch.equal(again.patches, good.patches) and again.threshold == good.threshold
    assert torch.equal(torch.get_rng_state(), before)
    other = patchcore.remember((part(n) for n in range(6)), SETTINGS, seed=1)
    assert not torch.equal(other.patches, good.patches)
    few = SETTINGS.model_copy(update={"pictures": 3})
    assert nearest.chosen(range(9), few, 0) == nearest.chosen(range(9), few, 0)
    assert len(set(nearest.chosen(range(9), few, 0))) == 3


def test_one_good_picture_does_not_say_how_much_good_ones_differ():
    with pytest.raises(DataError, match="2 good pictures of a product or more, and there are 1"):
        patchcore.remember([part(0)], SETTINGS, 0)


def test_the_place_is_the_peak_of_the_smoothed_heat():
    heat = np.zeros((12, 12), np.float32)
    heat[0, 0] = 2.0  # a single patch, in the corner
    heat[5:8, 9:12] = 1.5
    assert Found(1.0, heat).cell(Grid(3, 3)) == 5
    assert Found(1.0, heat).cell(Grid(1, 2)) == 1


# --- as a method of an evaluation ----------------------------------------------------------------


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plates with and without a hole in the top left, as folders."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(8):
        save(part(n), root / f"plate/train/good/{n}.png")
    for n in range(3):
        save(part(20 + n), root / f"plate/test/good/{n}.png")
        save(part(30 + n, (4, 5)), root / f"plate/test/hole/{n}.png")
        mask = Image.new("L", (EDGE, EDGE))
        mask.paste(255, (4, 5, 18, 19))
        save(mask, root / f"plate/ground_truth/hole/{n}_mask.png")
    return root


@pytest.fixture(scope="module")
def config(photos: Path) -> Config:
    return compose.compose(
        ["stage=evaluate", "method=patchcore", "data=photos", f"data.root={photos}",
         "benchmark=photos", f"benchmark.photos.root={photos}", "patchcore.side=96",
         "patchcore.patches=1000", "engine.ranks=1", "tracking=none"]
    )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(config: Config) -> Dataset:
    return data.for_run(config)


def test_an_evaluation_needs_no_model_and_goes_through_the_same_judge(config, tmp_path, capsys):
    assert stages.find("evaluate").check_weights(config, tmp_path)
    folder = RunFolder.create(tmp_path, config.name)
    folder.write_json("config.json", config.model_dump(mode="json"))
    pipeline.run(config, folder)
    [row] = folder.summary()["results"]
    assert (row["stage"], row["split"], row["shots"], row["n"]) == ("patchcore", "photos", 0, 6)
    assert (row["miss_rate"], row["auroc"], row["location_accuracy"]) == (0.0, 100.0, 100.0)
    assert row["type_accuracy"] is row["ece"] is None  # it names no type and no probability
    found = read_predictions(folder.predictions("patchcore", "photos", 0))
    assert {p.gold_type for p in found.values()} == {None, "hole"} and len(found) == 6
    assert all(p.answer == ("no", "yes")[(p.score or 0) > 1] for p in found.values())
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "nearest good patches" in page and "<b>backbone</b> patchcore" in page
    assert page.count('<image class="patches" href="data:image/png') == 6  # on every picture
    assert 'name="patches" checked>' in page, "no model answers, so they are shown at once"
    for stored in gallery.read(folder.path):
        with Image.open(folder.path / str(gallery.heat_of(folder.path, stored))) as heat:
            opaque = np.asarray(heat)[..., 3]  # 12 x 12 patches
        hole = "/hole/" in stored["id"]
        assert (opaque[:4, :4].max() == overlay.HEAT_STRENGTH) == hole
        assert opaque[6:, 6:].max() < overlay.HEAT_STRENGTH
    assert "nearest good patches" in capsys.readouterr().out


def test_what_was_judged_before_a_stop_is_not_judged_again(config, dataset, tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, config.name)
    chosen = loop.required(config, dataset)
    whole = loop.run(config, folder, dataset, chosen)
    path = folder.predictions("patchcore", "photos", 0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])
    judged: list[str] = []
    kept = loop.prediction
    monkeypatch.setattr(
        loop, "prediction", lambda *asked: judged.append(asked[1].id) or kept(*asked)
    )
    assert loop.run(config, folder, dataset, chosen) == whole and len(judged) == 2
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)


def test_good_pictures_are_those_of_the_training_part_and_none_that_is_judged(config, dataset):
    [(split, found)] = dataset.good.items()
    assert split == "test.photos" and len(found["plate"]) == 8
    assert all("/train/good/" in sample.id for sample in found["plate"])
    grid = as_grid(config.grid)
    own = mix.load(config.data, grid, "centroid_largest", 0, frozenset({"test"})).good
    assert {*own} >= {"test.seen"}
    assert {s.id for s in own["test.seen"]["plate"]} <= {s.id for s in found["plate"]}


def test_references_of_the_data_set_stand_in_where_nothing_trains(dataset):
    tests = dataset.test["photos"]
    given = (tests[0], *dataset.good["test.photos"]["plate"][:2])
    shown = [replace(sample, references=given) for sample in tests]
    found = mix._good(shown, {})
    assert found == {"test.photos": {"plate": given[1:]}}  # not the one that is judged


def told(config: Config, **changes: object) -> Config:
    settings = config.patchcore.model_copy(update=changes)
    return config.model_copy(update={"method": Method(name="model"), "patchcore": settings})


def test_beside_a_model_photographs_are_judged_and_drawn_pictures_are_not(
    config, dataset, monkeypatch, capsys
):
    assert list(loop.beside(told(config), dataset)) == ["photos"]
    assert loop.beside(told(config, beside="never"), dataset) == {}
    assert loop.beside(told(config, beside_limit=5), dataset) == {}
    assert "6 pictures are more than patchcore.beside_limit=5" in capsys.readouterr().out
    in_memory = [replace(s, image=part(0)) for s in dataset.test["photos"]]
    drawn = replace(dataset, test={"photos": tuple(in_memory)})
    assert loop.beside(told(config), drawn) == {}
    assert list(loop.beside(told(config, beside="always"), drawn)) == ["photos"]
    monkeypatch.setattr("iad_r1.nearest.PACKAGE", "no_such_wheel")
    assert loop.beside(told(config), dataset) == {}
    with pytest.raises(WeightsError, match="not installed"):
        stages.find("evaluate").check_weights(config, Path())


def test_too_few_good_pictures_are_named(config, dataset):
    few = {"test.photos": {"plate": dataset.good["test.photos"]["plate"][:1]}}
    with pytest.raises(DataError, match="photos has fewer than 2 good pictures of plate"):
        loop.required(config, replace(dataset, good=few))


def test_what_nearest_good_patches_cannot_do_is_refused(config):
    refused = "".join(rules.contradictions(config.model_copy(update={"init": "somewhere"})))
    assert "need no weights of a run" in refused
    stage = config.stage.model_copy(update={"name": "sft", "tasks": ["sft"]})
    refused = "".join(rules.contradictions(config.model_copy(update={"stage": stage})))
    assert "judge and do not learn. Use stage=evaluate" in refused


# --- as a judge of pictures of which nothing is known --------------------------------------------


@pytest.fixture(scope="module")
def asked(photos: Path) -> Config:
    """The test pictures of those plates, against the good training ones."""
    return compose.compose(
        ["stage=predict", "method=patchcore", "patchcore.side=96", "patchcore.patches=1000",
         f"images={photos}/plate/test", f"references={photos}/plate/train/good"]
    )  # fmt: skip


def told_to(config: Config, **stage: Any) -> Config:
    return config.model_copy(update={"stage": config.stage.model_copy(update=stage)})


def refusal(config: Config) -> str:
    stage = stages.find("predict")
    with pytest.raises((ConfigError, DataError)) as caught:
        for problem in stage.problems(config):
            raise ConfigError(problem)
        stage.check_inputs(config)
    return str(caught.value)


def test_verdicts_are_those_of_an_evaluation_with_the_same_good_pictures(
    asked, config, dataset, tmp_path, capsys
):
    goods = dataset.good["test.photos"]["plate"]
    asked = told_to(asked, references=[str(sample.image) for sample in goods], fail_on_defect=True)
    assert stages.find("predict").check_weights(asked, tmp_path)
    stages.find("predict").check_inputs(asked)
    folder = RunFolder.create(tmp_path, "predict")
    assert predict.run(asked, folder) == predict.DEFECTIVE
    found = {row["picture"]: row for row in Record(folder.path).rows}
    evaluation = RunFolder.create(tmp_path, "evaluate")
    loop.run(config, evaluation, dataset, loop.required(config, dataset))
    for sample in dataset.test["photos"]:
        path = evaluation.predictions("patchcore", "photos", 0)
        wanted, row = read_predictions(path)[sample.id], found.pop(str(sample.image))
        assert (row["score"], row["place"]) == (wanted.score, wanted.location)
        assert row["verdict"] == {"yes": "defective", "no": "good"}[wanted.answer]
        assert row["p_yes"] is row["type"] is None
        heat = np.load(folder.path / row["heat"])
        assert heat.shape == (12, 12) and 0.9 * row["score"] <= heat.max()
        assert (folder.path / row["annotated"]).is_file()
    assert not found
    with (folder.path / "predictions.csv").open(encoding="utf-8") as file:
        assert all(float(row["score"]) > 0 and row["heat"] for row in csv.DictReader(file))
    said = capsys.readouterr().out
    assert "DEFECTIVE" in said and "top left" in said


def test_after_a_kill_no_heat_map_is_without_a_verdict_and_none_is_lost(asked, photos, tmp_path):
    folder = RunFolder.create(tmp_path, "predict")
    holes, goods = ([f"{photos}/plate/{part}/{n}.png" for n in range(3)]
                    for part in ("test/hole", "train/good"))  # fmt: skip
    asked = told_to(asked, images=holes, references=goods)
    predict.run(asked, folder)
    record = folder.path / "predictions.jsonl"
    whole, heats = record.read_text(), sorted(os.listdir(folder.path / "heat"))
    lines = whole.splitlines(keepends=True)
    record.write_text("".join(lines[:2]) + lines[2][:40])
    (folder.path / "heat" / "000009-late.npy").write_bytes(b"torn")
    predict.run(asked, folder)
    before, after = (
        [{**json.loads(line), "seconds": 0} for line in text.splitlines()]
        for text in (whole, record.read_text())
    )
    assert before == after and sorted(os.listdir(folder.path / "heat")) == heats


def test_a_heat_map_colours_the_marked_picture_where_the_hole_is(asked, photos, tmp_path):
    folder = RunFolder.create(tmp_path, "predict")
    hole = photos / "plate/test/hole/0.png"
    predict.run(told_to(asked, images=str(hole)), folder)
    [row] = Record(folder.path).rows
    with Image.open(folder.path / row["annotated"]) as drawn, Image.open(hole) as plain:
        seen = np.asarray(drawn)[:480, :480].astype(int)
        colour = seen - np.asarray(plain.resize((480, 480))).astype(int)
    redder = colour[..., 0] - colour[..., 2]
    assert redder[30:90, 30:90].mean() > 60 and abs(redder[300:, 300:].mean()) < 10


def test_a_program_compares_with_good_pictures_and_remembers_those_in_files(
    photos, tmp_path, monkeypatch
):
    inspector = Inspector(compose.compose(["stage=predict", "method=patchcore",
                                           "patchcore.side=96"]))  # fmt: skip
    hole, goods = photos / "plate/test/hole/0.png", list((photos / "plate/train/good").iterdir())
    first = inspector.inspect(hole, goods)
    assert first.defective and first.place == "top left" and first.heat is not None
    described: list[int] = []
    network = imagenet.network()
    honest = type(network).features
    monkeypatch.setattr(
        type(network), "features",
        lambda self, shown, blocks: described.append(1) or honest(self, shown, blocks),
    )  # fmt: skip
    again = inspector.inspect(hole, goods)
    assert replace(again, seconds=first.seconds) == first and len(described) == 1
    described.clear()
    mine = tmp_path / "good.png"
    for value in (0, 1):  # a file that is written again is described again
        part(value).save(mine)
        os.utime(mine, (value, value))
        inspector.inspect(hole, [mine, goods[0]])
    assert len(described) == 2 * 3
    several = inspector.inspect_all([np.asarray(part(50)), part(50, (76, 42))], [part(1), part(2)])
    assert [found.defective for found in several][1]
    with pytest.raises(DataError, match="2 good pictures of a product or more, and there are 0"):
        inspector.inspect(hole)


def test_what_pictures_cannot_be_compared_with_is_refused_in_a_sentence(asked, photos):
    good = photos / "plate/train/good"
    assert "needs good pictures of the same product" in refusal(told_to(asked, references=None))
    one = refusal(told_to(asked, references=str(good / "0.png")))
    assert "1 good picture, and nearest good patches need 2 or more" in one
    both = refusal(told_to(asked, images=str(photos / "plate")))
    assert "8 pictures are named by images and by references" in both
    watched = refusal(told_to(asked, images=str(photos), watch=True))
    assert "compared with itself, a picture is always good" in watched
    model = asked.model_copy(update={"method": Method(name="model"), "init": "somewhere"})
    assert "P(yes) of a model is 1 at most" in refusal(told_to(model, threshold=1.5))


def test_a_threshold_is_that_of_good_pictures_as_set_or_of_a_validation_run(
    asked, config, dataset, photos, tmp_path
):
    value, said = described(asked, 8)
    assert value is None and said == "score 1: 5 % of the good pictures may lie above"
    assert described(told_to(asked, threshold=1.5), 8) == (1.5, "as set")
    assert "needs validation pictures" in refusal(told_to(asked, miss_rate=5.0))
    folder = RunFolder.create(tmp_path, "evaluate")
    folder.write_json("config.json", config.model_dump(mode="json"))
    chosen = told_to(asked, miss_rate=30.0, validation=str(folder.path))
    assert "holds no validation pictures" in refusal(chosen)
    loop.run(config, folder, dataset, loop.required(config, dataset))
    judged = read_predictions(folder.predictions("patchcore", "photos", 0)).values()
    append(folder.predictions("patchcore", "validation_photos", 0), list(judged))
    scores = sorted(one.score or 0 for one in judged if one.gold_answer == "yes")
    assert threshold(told_to(chosen, miss_rate=34.0), 8) == scores[1]
    assert threshold(chosen, 8) == scores[0]
    inspector = Inspector(told_to(asked, threshold=scores[2]))
    holes, goods = photos / "plate/test/hole", photos / "plate/train/good"
    found = inspector.inspect_all(sorted(holes.iterdir()), sorted(goods.iterdir()))
    assert sum(one.defective for one in found) == 1
    write_json(folder.config_file, {"patchcore": {**config.patchcore.model_dump(), "side": 128}})
    assert "patchcore.side=128, now 96" in refusal(chosen)
