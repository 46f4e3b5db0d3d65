"""From a sample to what the model reads, the same way in every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from iad_r1 import prompts
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.types import Conversation, Sample

Augment = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Room:
    """How long a prompt with its answer may get.

    Attributes:
        setting: where the limit is set, for messages.
        tokens: the most, image tokens included; None is no limit.
        answer: tokens kept free for the answer.
    """

    setting: str
    tokens: int | None
    answer: int = 0

    def check(self, prompt: Prompt, answer: int | None = None) -> None:
        """DataError that names the sample if it does not fit. Nothing is ever cut off.

        `answer`: its tokens, where they are known.
        """
        length = prompt.inputs["input_ids"].shape[-1]
        free = self.answer if answer is None else answer
        if self.tokens is not None and length + free > self.tokens:
            raise DataError(
                f"{prompt.name}: its prompt has {length:,} tokens and its answer takes {free:,}, "
                f"more than {self.setting}={self.tokens:,}. Show smaller pictures "
                f"(backbone.max_pixels), or set {self.setting}={length + free}."
            )


class Prompter:
    """Builds the prompt of a sample from a named template.

    Args:
        backbone: whose processor encodes the prompt and whose limits size the pictures.
        template: a name from `iad_r1.prompts`.
        room: for prompt and answer; None is any.
    """

    def __init__(self, backbone: Backbone, template: str, room: Room | None = None) -> None:
        self.backbone = backbone
        self.template = template
        self.room = room or Room("max_length", None)

    def conversation(self, sample: Sample, shots: int) -> Conversation:
        """The words of the prompt, with one `{image}` for each picture."""
        asked = sample.question
        return prompts.conversation(self.template, asked.text, shots, asked.options)

    def encode(self, sample: Sample, shots: int = 0, augment: Augment | None = None) -> Prompt:
        """The prompt with the first `shots` references of the sample, query last.

        DataError if it leaves no room for the answer.
        """
        pictures = [self.backbone.fit(images.open_image(s)) for s in shown(sample, shots)]
        if augment:
            pictures = [augment(picture) for picture in pictures]
        prompt = self.backbone.encode(self.conversation(sample, shots), pictures, sample.id)
        self.room.check(prompt)
        return prompt


def shown(sample: Sample, shots: int) -> Sequence[Sample]:
    """The samples whose pictures the prompt holds, in reading order."""
    return (*sample.references[:shots], sample)
