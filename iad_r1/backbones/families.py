"""What differs between families of models, by the `model_type` of a checkpoint's `config.json`.

A checkpoint's architecture is read from that field alone, never from the spelling of its path.
No torch, so that a run that cannot work is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from iad_r1.boxes import FrameName
from iad_r1.errors import ConfigError

Part = Literal["vision", "projector", "language"]
PARTS: tuple[Part, ...] = ("vision", "projector", "language")
Sizing = Literal["area", "tilings", "tiles", "square"]


@dataclass(frozen=True)
class Family:
    """What an architecture decides for pictures and positions.

    Attributes:
        sizing: how its processor decides the size of a picture, and what `max_pixels` does there.
            `area`: any size up to `max_pixels`, rounded to whole patches.
            `tilings`: fitted to one of a list of tilings (`image_grid_pinpoints`) and cut; those
            larger than `max_pixels` are taken off the list, the smallest one stays.
            `tiles`: cut into as many square tiles as `max_pixels` has room for, one at least.
            `square`: every picture becomes the same square; `max_pixels` changes nothing.
        image_keys: what its processor returns for a picture, and its vision tower is given.
        mrope: whether positions of image tokens have three dimensions.
        segments: whether its vision tower reads all pictures as one sequence of segments.
        frame: the coordinates in which it learned to write boxes (`boxes.Frame`); None: those who
            made it do not say, or not of the pictures that its processor makes.
    """

    sizing: Sizing
    image_keys: tuple[str, ...]
    mrope: bool = False
    segments: bool = False
    frame: FrameName | None = None


_QWEN = Family("area", ("pixel_values", "image_grid_thw"), mrope=True, segments=True)

# Sources of `frame`: Qwen2-VL (arXiv 2409.12191): boxes are normalised to [0, 1000). Qwen2.5-VL
# (arXiv 2502.13923): absolute coordinates, of the picture after `smart_resize`. InternVL's
# documentation of its chat data: integers between 0 and 1000, of width and height. LLaVA's papers
# give shares of a padded square; the processors here crop or tile pictures and pad none.
FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": replace(_QWEN, frame="thousandths"),
    "qwen2_5_vl": replace(_QWEN, frame="shown"),
    "llava": Family("square", ("pixel_values",)),
    "llava_next": Family("tilings", ("pixel_values", "image_sizes")),
    "llava_onevision": Family("tilings", ("pixel_values", "image_sizes", "batch_num_images")),
    "internvl": Family("tiles", ("pixel_values",), frame="thousandths"),
}


def family_of(model_type: str | None) -> Family:
    """The row of an architecture. ConfigError if it is not known here."""
    if model_type is None or model_type not in FAMILIES:
        raise ConfigError(
            f"model type {model_type!r} is not supported here; supported are {', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]


def check_frame(model_type: str | None) -> FrameName:
    """The coordinates that an architecture writes boxes in. ConfigError if nobody has said them."""
    frame = family_of(model_type).frame
    if frame is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.frame is not None)
        raise ConfigError(
            f"location_format: in which coordinates {model_type} writes boxes is not documented. "
            f"Use location_format=words, or a backbone of one of these families: {known}."
        )
    return frame


# Fragments of parameter names. The projector maps what the vision tower sees to the language
# model's width; Qwen keeps it inside its tower and calls it the merger.
_PROJECTOR = ("visual.merger.", "multi_modal_projector.", "image_newline")
_TOWER = ("visual.", "vision_tower.")


def part_of(name: str) -> Part:
    """Which part of a model the parameter or module `name` belongs to.

    What is neither vision tower nor projector is the language model, its output layer included.
    """
    dotted = f"{name}."
    if any(fragment in dotted for fragment in _PROJECTOR):
        return "projector"
    return "vision" if any(fragment in dotted for fragment in _TOWER) else "language"
