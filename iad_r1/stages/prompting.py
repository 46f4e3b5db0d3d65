"""From a sample to what the model reads, the same way in every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from iad_r1 import data, prompts
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.types import Conversation, Sample

Augment = Callable[[Image.Image], Image.Image]


class Prompter:
    """Builds the prompt of a sample from a named template.

    Args:
        backbone: whose processor encodes the prompt and whose limits size the pictures.
        template: a name from `iad_r1.prompts`.
    """

    def __init__(self, backbone: Backbone, template: str) -> None:
        self.backbone = backbone
        self.template = template

    def conversation(self, sample: Sample, shots: int) -> Conversation:
        """The words of the prompt, with one `{image}` for each picture."""
        return prompts.conversation(self.template, shots=shots)

    def encode(self, sample: Sample, shots: int = 0, augment: Augment | None = None) -> Prompt:
        """The prompt with the first `shots` references of the sample, query last."""
        pictures = [self.backbone.fit(data.open_image(s)) for s in shown(sample, shots)]
        if augment:
            pictures = [augment(picture) for picture in pictures]
        return self.backbone.encode(self.conversation(sample, shots), pictures, sample.id)


def shown(sample: Sample, shots: int) -> Sequence[Sample]:
    """The samples whose pictures the prompt holds, in reading order."""
    return (*sample.references[:shots], sample)
