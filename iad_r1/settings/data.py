"""What every reader of `data=...` and `benchmark=...` may be told; each adds its own `Settings`.

A reader is one module in `iad_r1/data/readers/`, found by the `name` in its YAML file. Types and
limits only: the values are in conf/data/*.yaml and conf/benchmark/*.yaml. Standard library and
pydantic only, so that a configuration is checked before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field, SerializeAsAny
from pydantic_core import PydanticCustomError

from iad_r1.settings import modules
from iad_r1.settings.base import Count, Section, Share
from iad_r1.types import Sample

READERS = "iad_r1.data.readers"


class ReaderSettings(Section):
    """What a reader is told."""

    name: str  # of its module
    tests: ClassVar[bool] = True  # whether there is a test part

    def announce(self) -> str:
        """What is read, for the plan that is printed before a run."""
        return self.name

    def members(self) -> Mapping[str, ReaderSettings]:
        """The readers that it stands for, itself or several, by what is typed behind its section:
        nothing, or ".parts.photos"."""
        return {"": self}


class Folder(ReaderSettings):
    """For readers of a folder."""

    root: str

    def announce(self) -> str:
        """Which folder."""
        return f"{self.name} in {self.root}"


class Trains(ReaderSettings):
    """For readers of pictures to train on: which of them equal a test picture."""

    # two pictures are near-duplicates when at most this many of 256 hash bits differ
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)]
    # leave out training pictures that are near-duplicates of a test picture
    drop_leaks: bool


class TrainingSplit(Trains):
    """For readers that know `train` and `test` alone: how `mix` makes the parts of a run."""

    # of the training pictures, kept apart
    validation_share: Annotated[float, Field(gt=0, lt=1)]


class Views(Section):
    """How many views of its photographs train (`data/views.py`)."""

    sft: Count  # for PA-SFT
    rl: Count  # for SC-GRPO
    drawn_defects: Share  # of the defective views: good photographs with a drawn defect
    pixels: Count  # of a view at most


class DrawnSplit(TrainingSplit):
    """For readers of data that may not say what tests (`folders.UNSPLIT`)."""

    # who says it; null: the data, and the seed where they do not
    split: Literal["drawn"] | None
    # of every product and label, where the seed says it
    test_share: Annotated[float, Field(gt=0, lt=1)]
    # of the training photographs, in their place; null: they themselves
    views: Views | None


class OwnMasks(Section):
    """For readers of masks whose maker is not known; null: refused where it has to be
    known and cannot be told."""

    masks_inverted: bool | None  # zero is defective
    masks_drawn_on: Literal["stored", "shown"] | None  # of a picture that its camera turned
    # share of white from which a pixel is defective; null: any value but zero
    masks_threshold: Annotated[float, Field(gt=0, le=1)] | None


class ReaderModule(Protocol):
    """A module in `iad_r1/data/readers/`. Importing it is cheap.

    That of a public data set also says in `SOURCE` where to get it, and in `FOLDERS` what the
    folder is usually called that is its `root`.
    """

    Settings: type[ReaderSettings]

    def read(self, settings: Any, seed: int) -> Iterator[Sample]:
        """Every sample there is, in an order that is the same everywhere; `split` is train or
        test, or says more (see `mix`). Files are named, not opened. Raises DataError."""
        ...


def reader(name: str) -> ReaderModule:
    """The reader of that name."""
    return modules.find(READERS, name)


def nothing(settings: ReaderSettings, announced: str) -> str:
    """The sentence for a root without a single picture, with where to get what belongs there."""
    source = getattr(reader(settings.name), "SOURCE", "")
    return f"{announced}: there are no pictures. {source}".rstrip()


def needed(what: str, source: str = "") -> BeforeValidator:
    """Of a setting that is null until the user says `what` it is; `source` says where to get it."""

    def given(value: Any) -> Any:
        if value is None:
            raise PydanticCustomError("no_value", "{what}", {"what": what, "source": source})
        return value

    return BeforeValidator(given)


Reader = Annotated[SerializeAsAny[ReaderSettings], modules.typed_by(READERS)]
