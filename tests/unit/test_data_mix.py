"""Several data sets trained on at once, and what of training is met again in testing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from miniatures import expert_ad, like_mvtec, picture
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError
from iad_r1.loops import opening
from iad_r1.settings.base import CONF
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Dataset

SFT = ["stage=sft", "backbone=qwen25vl_3b", "tracking=none"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Expert-AD and MPDD as they are called, and photographs of plates."""
    sets = tmp_path / "sets"
    expert_ad(sets / "Expert-AD")
    like_mvtec(sets / "MPDD" / "tubes", "anomalous")
    for split, n in (("train", 10), ("test", 4)):
        for kind in ("good", "scratch"):
            for i in range(n):
                picture(sets / "parts" / "plate" / split / kind / f"{split}{i}.png")
    return sets


def made(root: Path, *overrides: str) -> Config:
    return compose.compose([*SFT, f"benchmark.root={root}", *overrides])


def mixed(root: Path, *overrides: str) -> Config:
    parts = ["data=mix", "data/parts=[expert_ad,photos]", f"data.parts.photos.root={root}/parts"]
    return made(root, *parts, *overrides)


def ids(dataset: Dataset) -> Counter[str]:
    return Counter(sample.id for sample in dataset.sft)


# --- what is trained -----------------------------------------------------------------------------


def test_a_part_trains_what_it_trains_alone(root):
    both = data.for_run(mixed(root, "benchmark=mpdd"))
    expert = data.for_run(made(root, "data=expert_ad", "benchmark=mpdd"))
    photos = data.for_run(made(root, "data=photos", f"data.root={root}/parts", "benchmark=mpdd"))
    assert both.sft == (*expert.sft, *photos.sft)
    assert both.rl == (*expert.rl, *photos.rl)
    assert both.test == expert.test == photos.test
    assert both.name == "expert_ad+parts"
    assert both.counts["photos.train_normal"] == photos.counts["train_normal"] == 8
    assert both.counts["expert_ad.sft"] == len(expert.sft)


def test_parts_are_validated_and_tested_under_their_names(root):
    found = data.for_run(mixed(root, "stage=pipeline", "data/parts=[photos,synthetic]",
                               *(f"data.parts.synthetic.sizes.{part}=8" for part in
                                 ("sft", "rl", "validation", "test"))))  # fmt: skip
    named = ["photos", "synthetic_seen", "synthetic_new"]
    assert list(found.test) == named
    assert {s.split for s in found.test["synthetic_new"]} == {"test.synthetic_new"}
    chosen = mixed(root, "stage=pipeline", "evaluate.splits=[validation]", "data/parts=[photos]")
    assert list(data.for_run(chosen).validation) == ["photos"]


def test_a_weight_says_how_often_an_epoch_holds_a_picture(root):
    once = ids(data.for_run(mixed(root, "benchmark=mpdd")))
    weights = ["data.weights.photos=2", "data.weights.expert_ad=0.5"]
    found = data.for_run(mixed(root, "benchmark=mpdd", *weights))
    counted = ids(found)
    assert {id: counted[id] for id in counted if id.startswith("parts/")} == {
        id: 2 for id in once if id.startswith("parts/")
    }
    halved = [id for id in counted if id.startswith("expert_ad/")]
    assert len(halved) == 5 and {counted[id] for id in halved} == {1}
    assert data.for_run(mixed(root, "benchmark=mpdd", *weights)) == found
    another = data.for_run(mixed(root, "benchmark=mpdd", *weights, "seed=1"))
    assert {id for id in ids(another) if id.startswith("expert_ad/")} != set(halved)
    more = ids(data.for_run(mixed(root, "benchmark=mpdd", "data.weights.photos=1.5")))
    assert Counter(n for id, n in more.items() if id.startswith("parts/")) == {1: 8, 2: 8}


def test_everything_that_was_read_has_a_fingerprint_of_its_own(root):
    before = data.for_run(mixed(root, "benchmark=mpdd"))
    assert list(before.fingerprints) == [
        "data.parts.expert_ad", "data.parts.photos", "benchmark.mpdd",
    ]  # fmt: skip
    picture(root / "parts" / "plate" / "train" / "good" / "other.png")
    after = data.for_run(mixed(root, "benchmark=mpdd"))
    changed = [k for k, value in before.fingerprints.items() if after.fingerprints[k] != value]
    assert changed == ["data.parts.photos"] and before.fingerprint != after.fingerprint
    heavier = data.for_run(mixed(root, "benchmark=mpdd", "data.weights.photos=2"))
    assert heavier.fingerprints == after.fingerprints
    assert heavier.fingerprint != after.fingerprint
    alone = data.for_run(made(root, "data=expert_ad", "benchmark=mpdd"))
    assert list(alone.fingerprints) == ["data", "benchmark.mpdd"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "data/parts=[synthetic,photos]"),
        (["data/parts=[synthetic]", "+data.weights.other=1"], "must have the same names"),
        (["data/parts=[synthetic]", "data.weights.synthetic=0"], "data.weights.synthetic=0"),
        (["data/parts=[photos]"], "data.parts.photos.root"),
        (["data/parts=[expert_ad]"], "data=mix trains and has no test part"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(overrides, said, root):
    with pytest.raises(ConfigError) as caught:
        made(root, "stage=pipeline", "data=mix", *overrides)
    assert said in str(caught.value)


# --- what of training is tested ------------------------------------------------------------------


def leak(root: Path, trained: str, tested: str) -> None:
    """A test picture among the training pictures, saved in another format and size."""
    (root / trained).unlink()
    with Image.open(root / tested) as shown:
        shown.resize((48, 48), Image.Resampling.BICUBIC).save(root / trained, "PNG")


def test_training_pictures_that_a_test_holds_are_counted_for_every_part_and_test(root):
    plates = "parts/plate/train/good"
    leak(root, f"{plates}/train0.png", "MPDD/tubes/test/good/000.png")
    leak(root, f"{plates}/train1.png", "parts/plate/test/good/test0.png")
    clip = next((root / "Expert-AD").rglob("audiojack_0003_NG*.jpg")).relative_to(root)
    leak(root, str(clip), "parts/plate/test/scratch/test1.png")
    found = data.for_run(mixed(root, "stage=pipeline", "benchmark=mpdd"))
    leaks = {key: n for key, n in found.counts.items() if "leaks" in key and n}
    assert leaks == {
        "photos.leaks": 2, "photos.leaks.mpdd": 1, "photos.leaks.seen": 1,
        "expert_ad.leaks": 1, "expert_ad.leaks.photos": 1,
    }  # fmt: skip
    said = list(opening.leaks(mixed(root, "benchmark=mpdd"), found.counts))
    assert said == [
        "1 training pictures of expert_ad are near-duplicates of test pictures (photos 1): results "
        "on them flatter (data.parts.expert_ad.drop_leaks=true leaves them out)",
        "2 training pictures of photos are near-duplicates of test pictures (seen 1, mpdd 1): "
        "results on them flatter (data.parts.photos.drop_leaks=true leaves them out)",
    ]


@pytest.mark.parametrize("drop", [False, True])
def test_so_are_those_that_another_part_validates_with(drop, root):
    plates = data.for_run(mixed(root, "stage=pipeline", "data/parts=[photos]"))
    (kept, *_) = (s for s in plates.validation["photos"] if s.solution.answer == "Yes")
    clip = next((root / "Expert-AD").rglob("audiojack_0003_NG*.jpg")).relative_to(root)
    leak(root, str(clip), str(kept.image))
    chosen = mixed(root, "stage=pipeline", f"data.parts.expert_ad.drop_leaks={drop}".lower())
    found = data.for_run(chosen)
    assert found.counts["expert_ad.leaks.validation.photos"] == found.counts["expert_ad.leaks"] == 1
    assert found.validation == plates.validation
    names = {Path(str(s.image)).name for s in (*found.sft, *found.rl)}
    assert (clip.name in names) is not drop
    (said,) = opening.leaks(chosen, found.counts)
    assert "near-duplicates of test or validation pictures (validation.photos 1)" in said


def test_pictures_to_train_on_that_the_data_itself_validates_with_are_leaks(root):
    for i, kind in enumerate(("good", "scratch")):
        picture(root / f"parts/plate/val/{kind}/val{i}.png")
    leak(root, "parts/plate/train/good/train0.png", "parts/plate/val/good/val0.png")
    found = data.for_run(made(root, "data=photos", f"data.root={root}/parts", "stage=pipeline"))
    assert found.counts["leaks"] == found.counts["leaks.validation"] == 1


def test_they_are_left_out_on_demand(root):
    clip = next((root / "Expert-AD").rglob("audiojack_0003_NG*.jpg")).relative_to(root)
    leak(root, str(clip), "MPDD/tubes/test/good/000.png")
    chosen = ["data=expert_ad", "benchmark=mpdd"]
    kept = data.for_run(made(root, *chosen))
    dropped = data.for_run(made(root, *chosen, "data.drop_leaks=true"))
    assert kept.counts["leaks"] == dropped.counts["leaks_dropped"] == 1
    trained = [{s.id for s in (*found.sft, *found.rl)} for found in (kept, dropped)]
    (gone,) = trained[0] - trained[1]
    assert gone.startswith("expert_ad/rl/")
    (line,) = opening.leaks(made(root, *chosen), dropped.counts)
    assert line.endswith("(mpdd 1) and were left out")


def test_products_that_are_trained_and_tested_are_said_and_refused_in_zero_shot(
    root, tmp_path, capsys
):
    toys = root / "MPDD" / "Toy_Brick"  # as Expert-AD's toy brick, in other letters
    like_mvtec(toys, "scratch")
    chosen = ["data=expert_ad", "benchmark=mpdd", "evaluate.shots=[0]"]
    folder = RunFolder.create(tmp_path, "mix")
    opening.open_data(made(root, *chosen), folder)
    said = "products of these names are trained on and tested: mpdd: Toy Brick"
    assert said in capsys.readouterr().out
    about = folder.read_json("manifest.json")["data"]
    assert about["trained_products"] == ["audiojack", "toy brick"]
    assert set(about["fingerprints"]) == {"data", "benchmark.mpdd"}
    with pytest.raises(DataError) as caught:
        opening.open_data(made(root, *chosen, "protocol=zero_shot"), folder)
    assert "protocol=zero_shot" in str(caught.value) and "mpdd: Toy Brick" in str(caught.value)
    assert "protocol=any" in str(caught.value)
    shutil.rmtree(toys)
    fresh = RunFolder.create(tmp_path, "mix")
    opening.open_data(made(root, *chosen, "protocol=zero_shot"), fresh)
    assert "products of these names" not in capsys.readouterr().out


def test_what_an_earlier_run_was_trained_on_counts_too(root, tmp_path):
    like_mvtec(root / "MPDD" / "toy_brick", "scratch")
    earlier = RunFolder.create(tmp_path, "earlier")
    earlier.write_json("config.json", {"backbone": {"name": "qwen25vl_3b"}})
    earlier.update_manifest(data={"trained_products": ["toy brick"]})
    weights = earlier.checkpoint("sft")
    weights.mkdir(parents=True)
    (weights / "config.json").write_text(json.dumps({}))
    (weights / "model.safetensors").write_bytes(b"")
    chosen = ["stage=evaluate", "benchmark=mpdd", f"init={earlier.path}", "evaluate.shots=[0]"]
    found = made(root, *chosen, "protocol=zero_shot")
    with pytest.raises(DataError, match="mpdd: toy brick"):
        opening.open_data(found, RunFolder.create(tmp_path, "then"))


def test_every_data_set_can_be_a_part():
    options = {path.stem for path in (CONF / "data").glob("*.yaml")} - {"mix"}
    assert {path.stem for path in (CONF / "data" / "parts").glob("*.yaml")} == options
