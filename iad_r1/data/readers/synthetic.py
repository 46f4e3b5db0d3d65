"""The drawn world (`iad_r1.data.drawn.world`): 8 seen and 4 new products with exact masks.

PA-SFT sees the seen products, SC-GRPO both kinds; `seen` and `new` are validated and tested apart.
References come from a pool of normal pictures of their own, which no split contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from iad_r1.settings.base import Section
from iad_r1.settings.data import ReaderSettings
from iad_r1.types import Sample, Solution

VERSION = 2  # raise it whenever the same seed draws a different picture
REFERENCES_PER_PRODUCT = 12
REFERENCES_PER_SAMPLE = 4


class Sizes(Section):
    """How many images each part holds. `validation` and `test` count each of `seen` and `new`."""

    sft: PositiveInt
    rl: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class Settings(ReaderSettings):
    """Products and defects drawn in memory."""

    name: Literal["synthetic"]
    image_size: Annotated[int, Field(ge=32, le=1024)]  # pixels, square
    sizes: Sizes
    # share of the RL pool drawn from the four products that PA-SFT never sees
    rl_new_share: Annotated[float, Field(ge=0, le=1)]

    def announce(self) -> str:
        """The size of every part."""
        sizes = self.sizes
        return (
            f"drawn, {self.image_size} px: {sizes.sft:,} for PA-SFT, {sizes.rl:,} for SC-GRPO, "
            f"2 x {sizes.validation:,} validation, 2 x {sizes.test:,} test"
        )


def read(settings: Settings, seed: int) -> Iterator[Sample]:
    """Draw the whole world, split by split."""
    from iad_r1.data.drawn import world

    sizes, edge = settings.sizes, settings.image_size
    references = {
        product: tuple(
            draw(f"reference.{product.replace(' ', '_')}", 2 * k, [product], edge, seed)
            for k in range(REFERENCES_PER_PRODUCT)
        )
        for product in world.PAINTERS
    }
    splits = {
        "sft": (sizes.sft, world.SEEN_PRODUCTS),
        "rl": (sizes.rl, world.pool_products(settings.rl_new_share)),
        "validation.seen": (sizes.validation, world.SEEN_PRODUCTS),
        "validation.new": (sizes.validation, world.NEW_PRODUCTS),
        "test.seen": (sizes.test, world.SEEN_PRODUCTS),
        "test.new": (sizes.test, world.NEW_PRODUCTS),
    }
    for split, (size, products) in splits.items():
        for index in range(size):
            yield draw(split, index, products, edge, seed, references)


def draw(
    split: str,
    index: int,
    products: Sequence[str],
    edge: int,
    seed: int,
    references: Mapping[str, Sequence[Sample]] | None = None,
) -> Sample:
    """Draw one sample; a mask is kept only where there is a defect."""
    import numpy as np
    from PIL import Image

    from iad_r1.data.drawn import world

    shown, rng = world.item(index, products), world.stream(seed, split, index)
    picture = world.draw(rng, shown.product, shown.defect, edge)
    defective = shown.defect is not None
    shots = (references or {}).get(shown.product, ())
    chosen = rng.permutation(len(shots))[:REFERENCES_PER_SAMPLE]
    return Sample(
        id=f"synthetic/{split}/{index:05d}",
        dataset="synthetic",
        split=split,
        product=shown.product,
        image=Image.fromarray(picture.image),
        solution=Solution("Yes", None, shown.defect) if defective else Solution("No"),
        mask=Image.fromarray(picture.mask.astype(np.uint8) * 255) if defective else None,
        references=tuple(shots[k] for k in chosen),
    )
