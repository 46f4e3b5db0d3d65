"""`data` trains, `benchmark` tests: what each of them brings, and what is not read at all."""

from __future__ import annotations

import json
import shutil
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.data.readers import mvtec
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings import config
from iad_r1.settings.config import Config
from iad_r1.settings.data import READERS, reader
from iad_r1.settings.modules import names

EVALUATE = ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none"]


def picture(path: Path) -> None:
    """Noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(str(path.parts[-3:]).encode()))
    Image.fromarray(noise.integers(0, 255, (24, 24, 3), np.uint8)).save(path)


def make_mvtec(root: Path) -> Path:
    """Two categories as published, one of them with upper-case extensions, and some litter."""
    for category, suffix in (("bottle", ".png"), ("metal_nut", ".PNG")):
        for i in range(6):
            picture(root / category / "train" / "good" / f"{i:03}{suffix}")
        for kind in ("good", "broken_large"):
            for i in range(3):
                picture(root / category / "test" / kind / f"{i:03}{suffix}")
        for i in range(3):
            mask = np.zeros((24, 24), np.uint8)
            mask[1:5, 18:22] = 255
            path = root / category / "ground_truth" / "broken_large" / f"{i:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    picture(root / "bottle" / "test" / ".ipynb_checkpoints" / "000.png")
    (root / "bottle" / "test" / "good" / "._000.png").write_bytes(b"of another system")
    (root / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_mvtec(tmp_path / "mvtec")


def made(*overrides: str, directory: Path | None = None) -> Config:
    return compose.compose([*EVALUATE, *overrides], directory)


def test_mvtec_is_read_as_published(root):
    dataset = data.for_run(made("benchmark=mvtec", f"benchmark.mvtec.root={root}"))
    assert list(dataset.test) == ["mvtec"]
    assert not dataset.sft and not dataset.rl and not dataset.validation
    found = dataset.test["mvtec"]
    assert Counter((s.product, s.solution.answer) for s in found) == {
        (product, answer): 3 for product in ("bottle", "metal nut") for answer in ("Yes", "No")
    }
    for sample in found:
        assert (sample.dataset, sample.split) == ("mvtec", "test.mvtec")
        assert ("/test/good/" in sample.id) == (sample.solution.answer == "No")
        if sample.solution.answer == "Yes":
            assert (sample.solution.location, sample.solution.type) == ("top right", "broken large")
        assert len({r.id for r in sample.references}) == 4
        for reference in sample.references:
            assert "/train/good/" in reference.id and reference.product == sample.product
    assert dataset.counts == {"test.mvtec": 12, "test.mvtec.defective": 6}


def test_the_order_in_which_a_disk_lists_files_changes_nothing(root, monkeypatch):
    chosen = made("benchmark=mvtec", f"benchmark.mvtec.root={root}")
    before, listed = data.for_run(chosen), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(listed(path))))
    assert data.for_run(chosen) == before


def test_a_folder_of_photographs_with_good_training_pictures_alone_can_be_evaluated(root):
    """The published layout of MVTec AD, where it is the data of the run."""
    dataset = data.for_run(made("data=photos", f"data.root={root}"))
    assert len(dataset.test["seen"]) == 12
    assert all(sample.references for sample in dataset.test["seen"])
    with pytest.raises(DataError, match="train part of the folder holds no defective pictures"):
        data.for_run(
            compose.compose(
                ["stage=sft", "backbone=qwen25vl_3b", "data=photos", f"data.root={root}"]
            )
        )


def test_the_case_that_could_not_be_evaluated_can_be(shared):
    folder = shared / "cases" / "mvtec-evaluate"
    if not folder.is_dir():
        pytest.skip("the case is not here")
    dataset = data.for_run(made("data=photos", f"data.root={folder}"))
    assert Counter(s.solution.answer for s in dataset.test["seen"]) == {"Yes": 2, "No": 2}


@pytest.fixture
def photos(tmp_path: Path, root: Path) -> Path:
    """Photographs to train and test on, the same in every test."""
    folder = tmp_path / "parts"
    for split, n in (("train", 10), ("test", 4)):
        for kind in ("good", "scratch"):
            for i in range(n):
                picture(folder / "plate" / split / kind / f"{split}{i}.png")
    return folder


def both(photos: Path, root: Path, *more: str) -> Config:
    return compose.compose(
        ["stage=sft", "backbone=qwen25vl_3b", "data=photos", f"data.root={photos}",
         "benchmark=[mvtec,photos]", f"benchmark.mvtec.root={root}",
         f"benchmark.photos.root={photos}", *more]
    )  # fmt: skip


def test_benchmarks_test_and_the_data_trains_as_it_does_without_them(photos, root):
    alone = ["stage=sft", "backbone=qwen25vl_3b", "data=photos", f"data.root={photos}"]
    without = data.for_run(compose.compose(alone))
    dataset = data.for_run(both(photos, root))
    assert list(dataset.test) == ["mvtec", "photos"]
    assert (dataset.sft, dataset.rl, dataset.validation) == (
        without.sft, without.rl, without.validation,
    )  # fmt: skip
    assert dataset.fingerprint != without.fingerprint
    tested = {sample.id for sample in dataset.test["photos"]}
    assert tested == {sample.id for sample in without.test["seen"]}


def test_training_pictures_that_a_benchmark_holds_are_counted_and_dropped_on_demand(photos, root):
    for i in (1, 2):
        shutil.copy(
            root / "bottle" / "test" / "good" / f"{i:03}.png",
            photos / "plate" / "train" / "good" / f"train{i}.png",
        )
    dataset = data.for_run(both(photos, root))
    assert (dataset.counts["leaks"], dataset.counts["leaks_dropped"]) == (2, 0)
    dropped = data.for_run(both(photos, root, "data.drop_leaks=true"))
    assert (dropped.counts["leaks"], dropped.counts["leaks_dropped"]) == (2, 2)


def test_a_plain_training_picture_that_a_benchmark_saved_again_is_a_leak(photos, root, tmp_path):
    tested, stream = tmp_path / "tested", np.random.default_rng(0)
    shutil.copytree(photos, tested)
    for file in sorted((photos / "plate" / "train" / "good").iterdir()):
        plate = Image.fromarray((150 + stream.normal(0, 2, (120, 160))).astype(np.uint8))
        plate.save(file)
        again = tested / "plate" / "test" / "good" / file.name.replace("train", "test")
        if again.exists():
            plate.save(tested / "again.jpg", quality=90)
            Image.open(tested / "again.jpg").save(again)
    settings = both(photos, root, f"benchmark.photos.root={tested}")
    assert data.for_run(settings).counts["leaks"] == 4


def test_of_a_benchmark_only_what_is_asked_is_opened(root):
    chosen = ["benchmark=mvtec", f"benchmark.mvtec.root={root}", "evaluate.limit=2"]
    found = data.for_run(made(*chosen)).test["mvtec"]
    assert found == data.for_run(made(*chosen[:2])).test["mvtec"][:2]
    asked = [sample.image for sample in found]
    for path in root.rglob("test/*/0*"):
        if path not in asked and ".ipynb_checkpoints" not in path.parts:
            path.write_bytes(b"broken")
    assert data.for_run(made(*chosen)).test["mvtec"] == found
    with pytest.raises(DataError, match="this image cannot be read"):
        data.for_run(made(*chosen[:2]))


def test_data_that_only_stands_beside_a_benchmark_is_not_read(root, tmp_path):
    chosen = ["benchmark=mvtec", f"benchmark.mvtec.root={root}"]
    assert list(data.sources(made(*chosen))) == ["benchmark.mvtec"]
    nowhere = ["data=photos", f"data.root={tmp_path / 'nowhere'}"]
    assert data.for_run(made(*chosen, *nowhere)).name == "mvtec"
    validated = made(*chosen, "evaluate.splits=[validation,test]")
    assert list(data.sources(validated)) == ["data", "benchmark.mvtec"]
    trained = compose.compose(["stage=sft", *chosen])
    assert data.parts(trained) == {"train"}


def test_a_benchmark_needs_good_and_defective_pictures(root):
    for folder in root.glob("*/test/good"):
        shutil.rmtree(folder)
    with pytest.raises(DataError, match="test part of benchmark mvtec holds no good pictures"):
        data.for_run(made("benchmark=mvtec", f"benchmark.mvtec.root={root}"))


def test_a_benchmark_without_good_training_pictures_is_tested_without_references(root):
    for folder in root.glob("*/train"):
        shutil.rmtree(folder)
    dataset = data.for_run(made("benchmark=mvtec", f"benchmark.mvtec.root={root}"))
    assert all(sample.references == () for sample in dataset.test["mvtec"])


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["mvtec", "[mvtec]", "[mvtec,photos]", "none", "[]"])
def test_one_benchmark_or_a_list_is_chosen(chosen, tmp_path):
    wanted = [name for name in ("mvtec", "photos") if name in chosen]
    roots = [f"benchmark.{name}.root={name}" for name in wanted]
    found = made(f"benchmark={chosen}", *roots, directory=tmp_path)
    assert list(found.benchmark) == wanted
    for name in wanted:
        assert found.benchmark[name].model_dump()["root"] == str(tmp_path / name)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        made(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark=mvtec"], ["benchmark.mvtec.root has no value", "benchmark.mvtec.root=<"]),
        (["benchmark=mvtek"], ["benchmark=mvtek", "Did you mean mvtec?"]),
        (
            ["data.name=foto"],
            [
                "data.name=foto: must be one of 'anomaly_r1', 'dagm',",
                "'photos', 'real_iad', 'sdd',",
            ],
        ),
        (["+data.zoom=1"], ["data.zoom: there is no such setting"]),
        (["benchmark=mvtec", "+benchmark.mvtec.rot=a"], ["mvtec.rot: there is no such setting"]),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused_and_named(overrides: Sequence[str], said):
    message = refused(*overrides)
    for text in said:
        assert text in message, message


def test_settings_of_readers_survive_the_file_of_a_run(tmp_path):
    before = made("benchmark=[mvtec,photos]", "benchmark.mvtec.root=a", "benchmark.photos.root=b")
    text = before.model_dump_json()
    assert config.load(text) == before
    assert json.loads(text)["benchmark"]["photos"]["near_duplicate_bits"] == 10
    assert isinstance(config.load(text).benchmark["mvtec"], mvtec.Settings)


def test_every_reader_has_what_a_reader_needs():
    for name in names(READERS):
        found = reader(name)
        assert found.Settings.model_fields["name"].annotation is not str, name
        assert callable(found.read)
