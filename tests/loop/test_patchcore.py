"""Nearest good patches: what is strange, where, and from when on it counts as a defect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iad_r1 import data, stages
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.errors import DataError, WeightsError
from iad_r1.grid import Grid, as_grid
from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import patchcore as loop
from iad_r1.loops import pipeline
from iad_r1.nearest import patchcore
from iad_r1.nearest.patchcore import Found
from iad_r1.settings import rules
from iad_r1.settings.config import Config
from iad_r1.settings.patchcore import Method, Patchcore
from iad_r1.store.run_folder import RunFolder
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
    assert patchcore.chosen(range(9), few, 0) == patchcore.chosen(range(9), few, 0)
    assert len(set(patchcore.chosen(range(9), few, 0))) == 3


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
         "engine.ranks=1", "tracking=none"]
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
