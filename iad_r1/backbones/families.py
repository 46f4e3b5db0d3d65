"""What differs between families of models, by the `model_type` of a checkpoint's `config.json`.

A checkpoint's architecture is read from that field alone, never from the spelling of its path.
Standard library only, so that a run that cannot work is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["vision", "projector", "language"]
PARTS: tuple[Part, ...] = ("vision", "projector", "language")
Sizing = Literal["area", "tilings", "tiles", "square"]


@dataclass(frozen=True)
class Family:
    """How a family's processor decides the size of a picture, and what `max_pixels` does there.

    Attributes:
        sizing: `area`: any size up to `max_pixels`, rounded to whole patches.
            `tilings`: fitted to one of a list of tilings (`image_grid_pinpoints`) and cut; those
            larger than `max_pixels` are taken off the list, the smallest one stays.
            `tiles`: cut into as many square tiles as `max_pixels` has room for, one at least.
            `square`: every picture becomes the same square; `max_pixels` changes nothing.
    """

    sizing: Sizing


FAMILIES: Mapping[str, Family] = {
    "qwen2_vl": Family("area"),
    "qwen2_5_vl": Family("area"),
    "llava": Family("square"),
    "llava_next": Family("tilings"),
    "llava_onevision": Family("tilings"),
    "internvl": Family("tiles"),
}

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
