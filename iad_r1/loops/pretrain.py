"""Supervised pre-training of the tiny vision tower on synthetic masks.

Not a stage of the papers: real backbones come with eyes, the tiny one has to grow them. A linear
head predicts, for each of the 4 x 4 blocks under a language-model token, which defect class (or
none) covers it. The head is thrown away; the tower stays.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from iad_r1.backbones import tiny
from iad_r1.data.drawn.defects import DEFECT_TYPES
from iad_r1.data.drawn.world import pretraining_batch
from iad_r1.learn import optim
from iad_r1.learn.context import Context
from iad_r1.learn.learner import open_learner
from iad_r1.learn.saving import Saver
from iad_r1.loops.sft import photometric
from iad_r1.processes import distributed

BLOCKS = 4  # per side of one language-model token
WHITENING_IMAGES = 1500


def block_labels(masks: np.ndarray, cell: int) -> np.ndarray:
    """Class map [n, H, W] to [n, cells, BLOCKS * BLOCKS]: the defect class in the block, 0 if none.

    `cell` is the side in pixels of what one language-model token sees; cells are row-major.
    """
    n, height, width = masks.shape
    block = cell // BLOCKS
    rows, columns = height // cell, width // cell
    tiles = masks.reshape(n, rows, BLOCKS, block, columns, BLOCKS, block)
    tiles = tiles.transpose(0, 1, 4, 2, 5, 3, 6)
    # an image holds one defect, so the largest class in a block is the defect's
    return tiles.reshape(n, rows * columns, BLOCKS * BLOCKS, block * block).max(-1)


def train(context: Context) -> None:
    """Pre-train the vision tower of `context.backbone` in place."""
    settings, seed = context.config.pretrain, context.config.seed
    assert settings is not None  # config.py: the step exists only with its settings
    tower = context.model.model.visual
    backbone = context.config.backbone
    assert backbone.source == "built"  # the others can see
    side = math.isqrt(backbone.max_pixels) // tiny.CELL * tiny.CELL
    images, masks = pretraining_batch(
        np.random.default_rng([seed, 1]), settings.images, image_size=side
    )
    device = context.model.device
    labels = torch.from_numpy(block_labels(masks, tiny.CELL).astype(np.int64)).to(device)
    processor = context.backbone.processor.image_processor
    whiten(tower.patch_embed.proj, _pixels(processor, images[:WHITENING_IMAGES]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(tower.config.out_hidden_size, BLOCKS * BLOCKS * (len(DEFECT_TYPES) + 1))
    both = nn.ModuleDict({"visual": tower, "head": head.to(device)})
    steps = settings.steps
    learner = open_learner(context.config.engine, both, settings, steps)
    saver = Saver(context, "pretrain", learner, 0, steps, extra={"head": head})
    weight = torch.tensor([settings.normal_weight] + [1.0] * len(DEFECT_TYPES), device=device)
    both.train()
    with context.progress("vision tower", steps) as bar:
        order = optim.batches(range(len(images)), settings.batch_size, steps, seed)
        for step in saver.steps(bar):
            mine = distributed.share(order[step])
            pictures = [augmented(images[i], f"{seed}/{step}/{i}") for i in mine]
            encoded = processor(images=pictures, return_tensors="pt").to(device)
            wanted = labels[mine].flatten()
            count = distributed.total(weight[wanted].sum().item())
            objective = partial(_loss, both, encoded, wanted, weight, count)
            loss = learner.accumulate([objective], f"pretrain step {step}")
            values = {"loss": distributed.total(loss)}
            values |= learner.update(f"pretrain step {step}")
            context.log("pretrain", step, values)
            bar.advance(loss=values["loss"])
            saver.done(step, values)
    learner.close()


def _loss(
    both: nn.ModuleDict, encoded: Any, wanted: Tensor, weight: Tensor, count: float
) -> Tensor:
    """Weighted cross-entropy of the blocks' classes, summed over this rank's and divided by
    `count`, the weight of all ranks' blocks."""
    features = both["visual"](encoded["pixel_values"], grid_thw=encoded["image_grid_thw"])
    scores = both["head"](features.pooler_output).view(-1, len(weight))
    return F.cross_entropy(scores, wanted, weight=weight, reduction="sum") / count


def augmented(image: np.ndarray, stream: str) -> Image.Image:
    """Photometric variation, as in PA-SFT; `stream` names the random numbers."""
    return photometric(random.Random(stream))(Image.fromarray(image))


def _pixels(processor: Any, images: np.ndarray) -> torch.Tensor:
    """Patches as the tower's first layer reads them, [patches, 3 * PATCH * PATCH]."""
    pictures = [Image.fromarray(image) for image in images]
    return processor(images=pictures, return_tensors="pt")["pixel_values"]


def whiten(embed: Any, patches: torch.Tensor, floor: float = 0.01) -> None:
    """Start the patch embedding as the whitened principal components of real patches.

    Brightness alone carries a hundred times the variance of any texture; whitened, faint
    structure is as visible to the next layer as light is, and training starts further along.
    """
    patches = patches.double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    width = embed.weight.shape[0]
    top, axes = values.flip(0)[:width], vectors.flip(1)[:, :width]
    with torch.no_grad():
        embed.weight.copy_((axes / (top + floor).sqrt()).T.view_as(embed.weight))
