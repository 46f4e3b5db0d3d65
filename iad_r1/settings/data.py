"""What `data=...` may say. Types and limits only: the values are in conf/data/*.yaml.

Standard library and pydantic only, so that a configuration is checked before anything heavy loads.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SyntheticSizes(_Settings):
    """How many images each part holds. `validation` and `test` count each of `seen` and `new`."""

    sft: PositiveInt
    rl: PositiveInt
    validation: PositiveInt
    test: PositiveInt


class SyntheticConfig(_Settings):
    """Products and defects drawn in memory (`iad_r1.data.readers.synthetic`)."""

    name: Literal["synthetic"]
    image_size: Annotated[int, Field(ge=32, le=1024)]  # pixels, square
    sizes: SyntheticSizes
    # share of the RL pool drawn from the four products that PA-SFT never sees
    rl_new_share: Annotated[float, Field(ge=0, le=1)]


class PhotosConfig(_Settings):
    """A folder of photographs (`iad_r1.data.readers.photos`)."""

    name: Literal["photos"]
    root: str  # holds meta.csv, or <product>/{train,test}/{good,<defect>}/
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    # two pictures are near-duplicates when at most this many of 256 hash bits differ
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)]
    # leave out training pictures that are near-duplicates of a test picture
    drop_leaks: bool


DataConfig = Annotated[SyntheticConfig | PhotosConfig, Field(discriminator="name")]
