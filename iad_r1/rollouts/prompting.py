"""From a sample to what the model reads, the same way in every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from iad_r1 import prompts
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.boxes import Frame, LocationFormat, Place
from iad_r1.data import images
from iad_r1.data.marked import outline
from iad_r1.errors import DataError, MismatchError
from iad_r1.settings.base import Pictures
from iad_r1.settings.config import Config
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
                f"({self.setting.replace('length', 'pixels')}), or set "
                f"{self.setting}={length + free}."
            )


class Prompter:
    """Builds the prompt of a sample from a named template.

    All stages of a run share one processor, so each has a limit only while it lasts: opening a
    prompter sets it, and a prompter that another one has followed refuses to encode.

    Args:
        backbone: whose processor encodes the prompt.
        template: a name from `iad_r1.prompts`.
        room: for prompt and answer; None is any.
        pictures: how large the stage shows them; None is as the checkpoint does.
        location_format: how places are written.
    """

    def __init__(
        self,
        backbone: Backbone,
        template: str,
        room: Room | None = None,
        pictures: Pictures | None = None,
        location_format: LocationFormat = "words",
    ) -> None:
        self.backbone = backbone
        self.template = template
        self.room = room or Room("max_length", None)
        self.pictures = pictures or Pictures(max_pixels=None, max_size=None)
        self.max_pixels = self.pictures.max_pixels
        self.location_format: LocationFormat = location_format
        self._places: dict[str, Place] = {}  # by the ids of samples
        backbone.limit_pixels(self.max_pixels)

    def conversation(self, sample: Sample, shots: int) -> Conversation:
        """The words of the prompt, with one `{image}` for each picture."""
        return conversation(self.template, sample, shots, self.location_format)

    def frame(self, sample: Sample) -> Frame | None:
        """The coordinates in which the place of a sample is written; None where it is words, or is
        not asked for."""
        if self.location_format == "words" or sample.question.options is not None:
            return None
        self._check_limit()
        size = images.size(sample)
        return self.backbone.frame(self.pictures.within(size), size)

    def place(self, sample: Sample) -> Place | None:
        """Where a sample is defective, as numbers; None where `frame` is."""
        if (frame := self.frame(sample)) is None:
            return None
        if sample.id not in self._places:
            corners = outline(images.open_mask(sample))
            self._places[sample.id] = Place(self.location_format, frame, corners)
        return self._places[sample.id]

    def judged(self, sample: Sample) -> Sample:
        """The sample with the place of its solution as an answer should write it."""
        if (place := self.place(sample)) is None or sample.solution.answer != "Yes":
            return sample
        return replace(sample, solution=replace(sample.solution, location=place.text))

    def encode(
        self, sample: Sample, shots: int | None = None, augment: Augment | None = None
    ) -> Prompt:
        """The prompt with the first `shots` references of the sample, query last; None: as many as
        training always shows with it.

        DataError if it leaves no room for the answer.
        """
        shots = sample.shots if shots is None else shots
        self._check_limit()
        pictures = [self.picture(each) for each in shown(sample, shots)]
        if augment:
            pictures = [augment(picture) for picture in pictures]
        prompt = self.backbone.encode(self.conversation(sample, shots), pictures, sample.id)
        self.room.check(prompt)
        return prompt

    def picture(self, sample: Sample) -> Image.Image:
        """The picture of one sample as this stage shows it."""
        return self.backbone.fit(scaled(sample, self.pictures))

    def length(self, sample: Sample, shots: int = 0) -> int:
        """Tokens of the prompt, as `encode` would make it, from the sizes of its pictures alone."""
        self._check_limit()
        words = self.backbone.text_tokens(self.conversation(sample, shots))
        sizes = (self.pictures.within(images.size(each)) for each in shown(sample, shots))
        return words + sum(self.backbone.picture_tokens(*size) for size in sizes)

    def _check_limit(self) -> None:
        if self.backbone.max_pixels != self.max_pixels:
            raise MismatchError(
                f"a stage that shows pictures within max_pixels={self.max_pixels} would encode "
                f"them within {self.backbone.max_pixels}, the limit of another one. This is a "
                "fault of ours; please report it."
            )


def conversation(
    template: str, sample: Sample, shots: int, location_format: LocationFormat = "words"
) -> Conversation:
    """The words of a sample's prompt where the stage's is `template`."""
    asked = sample.question
    return prompts.conversation(
        asked.prompt or template,
        asked.text,
        shots,
        None if asked.listed else asked.options,
        asked.knowledge,
        location_format=location_format,
    )


def open_prompter(
    config: Config, backbone: Backbone, stage: Literal["sft", "grpo", "evaluate"]
) -> Prompter:
    """The prompter of a stage: its template, how long its prompts may get with their answers, and
    how large it shows pictures. Of PA-SFT the answers are known, and checked with each prompt."""
    settings = getattr(config, stage)
    answer = 0
    if stage != "sft":
        answer = (config.rollout if stage == "grpo" else config.evaluate).max_tokens
    room = Room(f"{stage}.max_length", settings.max_length, answer)
    return Prompter(backbone, settings.prompt, room, settings, config.location_format)


def scaled(sample: Sample, limits: Pictures) -> Image.Image:
    """The picture of a sample, made smaller where `limits.max_size` asks for it."""
    found = images.open_image(sample)
    size = limits.within(found.size)
    return found if size == found.size else found.resize(size, Image.Resampling.LANCZOS)


def shown(sample: Sample, shots: int) -> Sequence[Sample]:
    """The samples whose pictures the prompt holds, in reading order."""
    return (*sample.references[:shots], sample)
