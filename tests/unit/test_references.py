"""Which good pictures stand beside a picture: those most like it, no test one, never itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iad_r1 import data
from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.settings.config import Config
from iad_r1.types import Sample

LOOKS = {"dark": 40, "light": 200}  # one product, photographed in two ways


def picture(path: Path, look: str, seed: int) -> None:
    """A disc on a ground of that brightness, with noise of its own."""
    values = np.random.default_rng(seed).normal(LOOKS[look], 20, (64, 64, 3))
    y, x = np.mgrid[:64, :64]
    values[(x - 32) ** 2 + (y - 32) ** 2 < 300] = 255 - LOOKS[look]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for i, look in enumerate(LOOKS):
        for n in range(4):
            picture(root / f"part/train/good/{look}{n}.png", look, 100 * i + n)
        for n, label in enumerate(("good", "dent", "good", "dent")):
            picture(root / f"part/test/{label}/{look}{n}.png", look, 100 * i + 50 + n)
            picture(root / f"part/train/dent/{look}{n}.png", look, 100 * i + 70 + n)
    return root


def made(*overrides: str) -> Config:
    return compose.compose(
        ["stage=sft", "backbone=qwen25vl_3b", "tracking=none", "reference_choice=nearest",
         *overrides]
    )  # fmt: skip


def look(sample: Sample) -> str:
    return Path(sample.id).name.rstrip("0123456789.png")


@pytest.mark.slow
def test_the_most_alike_good_training_pictures_are_shown_in_training_and_evaluation(photos):
    dataset = data.for_run(
        made("stage=pipeline", "data=photos", f"data.root={photos}", "data.near_duplicate_bits=0",
             "data.validation_share=0.1", "evaluate.splits=[validation,test]")
    )  # fmt: skip
    judged = (*dataset.sft, *dataset.validation["seen"], *dataset.test["seen"])
    assert len(judged) > 20
    for sample in judged:
        ids = [reference.id for reference in sample.references]
        assert sample.id not in ids and all("/train/good/" in id for id in ids)
        assert look(sample.references[0]) == look(sample)
    again = data.for_run(made("data=photos", f"data.root={photos}", "data.near_duplicate_bits=0",
                              "data.validation_share=0.1", "seed=0"))  # fmt: skip
    shown = {s.id: [r.id for r in s.references] for s in judged}
    assert all(shown[s.id] == [r.id for r in s.references] for s in again.sft)


def test_data_that_bring_their_own_references_have_nothing_to_choose():
    sizes = [f"data.sizes.{part}=8" for part in ("sft", "rl", "validation", "test")]
    with pytest.raises(DataError, match="nothing to choose: these data bring references"):
        data.for_run(made("data=synthetic", *sizes))
