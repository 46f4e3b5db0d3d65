"""Supervised pre-training of the tiny vision tower on synthetic masks, and on those of photographs.

Not a stage of the papers: real backbones come with eyes, the tiny one has to grow them. A linear
head predicts, for each of the 4 x 4 blocks under a language-model token, which defect class (or
none) covers it. The head is thrown away; the tower stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from iad_r1.backbones import tiny
from iad_r1.data import images
from iad_r1.data.drawn.defects import DEFECT_TYPES
from iad_r1.data.drawn.world import pretraining_batch
from iad_r1.learn import optim
from iad_r1.learn.context import Context
from iad_r1.learn.learner import open_learner
from iad_r1.learn.saving import Saver
from iad_r1.loops.sft import photometric
from iad_r1.processes import distributed
from iad_r1.types import Sample

BLOCKS = 4  # per side of one language-model token
WHITENING_IMAGES = 1500
CENTRING_IMAGES = 300


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
    drawn, masks = pretraining_batch(
        np.random.default_rng([seed, 1]), settings.images, image_size=side
    )
    device = context.model.device
    processor = context.backbone.processor.image_processor
    pictures = [Image.fromarray(image) for image in drawn]
    labels = list(torch.from_numpy(block_labels(masks, tiny.CELL).astype(np.int64)))
    kinds = 1 + len(DEFECT_TYPES)  # none is the first
    whiten(tower.patch_embed.proj, _pixels(processor, pictures[:WHITENING_IMAGES]))
    if settings.photographs:
        kinds += 1  # a defect of another type
        for picture, of_blocks in marked(context.dataset.sft, context.backbone.fit, kinds - 1):
            pictures.append(picture)
            labels.append(of_blocks)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(tower.config.out_hidden_size, BLOCKS * BLOCKS * kinds)
    both = nn.ModuleDict({"visual": tower, "head": head.to(device)})
    steps = settings.steps
    learner = open_learner(context.config.engine, both, settings, steps)
    saver = Saver(context, "pretrain", learner, 0, steps, extra={"head": head})
    weight = torch.tensor([settings.normal_weight] + [1.0] * (kinds - 1), device=device)
    both.train()
    with context.progress("vision tower", steps) as bar:
        order = optim.batches(range(len(pictures)), settings.batch_size, steps, seed)
        for step in saver.steps(bar):
            mine = distributed.share(order[step])
            shown = [augmented(pictures[i], f"{seed}/{step}/{i}") for i in mine]
            encoded = processor(images=shown, return_tensors="pt").to(device)
            wanted = torch.cat([labels[i].flatten() for i in mine]).to(device)
            count = distributed.total(weight[wanted].sum().item())
            objective = partial(_loss, both, encoded, wanted, weight, count)
            loss = learner.accumulate([objective], f"pretrain step {step}")
            values = {"loss": distributed.total(loss)}
            values |= learner.update(f"pretrain step {step}")
            context.log("pretrain", step, values)
            bar.advance(loss=values["loss"])
            saver.done(step, values)
    learner.close()
    if settings.centre:
        centre(tower, processor, pictures[:: max(1, len(pictures) // CENTRING_IMAGES)])


def marked(
    samples: Iterable[Sample], fit: Callable[[Image.Image], Image.Image], kind: int
) -> Iterator[tuple[Image.Image, Tensor]]:
    """The pictures of samples as the tower sees them (`fit`), and the class of every block, [cells,
    BLOCKS * BLOCKS]. Where a mask says that there is a defect, it is that of the drawn type, or
    `kind` for all others. Defects without a mask are left out."""
    for sample in samples:
        mask = images.open_mask(sample)
        if mask is None and sample.solution.answer == "Yes":
            continue
        picture = fit(images.open_image(sample))
        classes = np.zeros((1, picture.height, picture.width), np.uint8)
        if mask is not None:
            drawn = sample.solution.type in DEFECT_TYPES
            of_this = 1 + DEFECT_TYPES.index(sample.solution.type) if drawn else kind
            classes[0] = images.shrunk(mask, picture.size) * np.uint8(of_this)
        yield picture, torch.from_numpy(block_labels(classes, tiny.CELL).astype(np.int64))[0]


def _loss(
    both: nn.ModuleDict, encoded: Any, wanted: Tensor, weight: Tensor, count: float
) -> Tensor:
    """Weighted cross-entropy of the blocks' classes, summed over this rank's and divided by
    `count`, the weight of all ranks' blocks."""
    features = both["visual"](encoded["pixel_values"], grid_thw=encoded["image_grid_thw"])
    scores = both["head"](features.pooler_output).view(-1, len(weight))
    return F.cross_entropy(scores, wanted, weight=weight, reduction="sum") / count


def augmented(picture: Image.Image, stream: str) -> Image.Image:
    """Photometric variation, as in PA-SFT; `stream` names the random numbers."""
    return photometric(random.Random(stream))(picture)


def _pixels(processor: Any, pictures: list[Image.Image]) -> torch.Tensor:
    """Patches as the tower's first layer reads them, [patches, 3 * PATCH * PATCH]."""
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


@torch.no_grad()
def centre(
    tower: Any, processor: Any, pictures: Sequence[Image.Image], length: float = 4.0
) -> None:
    """Shift and scale what the tower says of these pictures: the mean is zero, and from there its
    features lie `length` away on average.

    A language model normalises what it reads. What all features share, as a trained tower leaves
    it, is several times as long as what tells them apart, and would be nearly all that it reads.
    """
    tower.eval()
    found = [
        tower(encoded["pixel_values"], grid_thw=encoded["image_grid_thw"]).pooler_output
        for encoded in (
            processor(images=[picture], return_tensors="pt").to(tower.device)
            for picture in pictures
        )
    ]
    features = torch.cat(found)
    mean, last = features.mean(0), tower.merger.mlp[-1]
    scale = length / (features - mean).norm(dim=1).mean()
    last.bias.copy_((last.bias - mean) * scale)
    last.weight.mul_(scale)
