"""`teacher=openai`: a vision-language model behind an interface like OpenAI's looks at the picture,
at a good one, and at the picture with its defect outlined, and is told the facts.

It is asked in the words of `asking.j2`, once for each text. What it says is kept on disk under the
hash of all that was asked, so nothing is paid for twice. A reply that is refused, cut off or not in
the form that was asked for is a rejection, and never mended.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from iad_r1.chat import client
from iad_r1.chat.client import Client, Messages
from iad_r1.chat.replies import Replies, Reply
from iad_r1.data import images
from iad_r1.data.targets import WHOLE_IMAGE, in_text
from iad_r1.errors import DataError
from iad_r1.expert.facts import Facts
from iad_r1.expert.teachers import Asked, Draft, Rejection
from iad_r1.expert.teachers.rules import percent
from iad_r1.rewards.vocabulary import Vocabulary, vocabulary
from iad_r1.settings.base import Count, Side
from iad_r1.settings.chat import Chat
from iad_r1.settings.config import Config
from iad_r1.settings.expert import ExpertSettings, TeacherSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Conversation

PROMPT = Path(__file__).resolve().parents[1] / "asking.j2"
NO_TYPE = "none"  # of a good picture
LINES = 250  # the outline is this part of the shorter side wide, and at least 2 pixels
SHOWN = 200  # characters of a reply that cannot be read
# Colors of the outline, and the words by which a text would give it away. The first word names it.
OUTLINES: Mapping[tuple[int, int, int], tuple[str, ...]] = {
    (255, 0, 255): ("magenta", "pink", "purple", "violet", "fuchsia"),
    (0, 255, 255): ("cyan", "turquoise", "teal", "aqua"),
    (0, 255, 0): ("green", "lime"),
    (255, 255, 0): ("yellow",),
    (255, 0, 0): ("red",),
}


_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


class Settings(TeacherSettings, Chat):
    """Which model is asked, and what it is shown."""

    structured: Literal["json_schema", "json_object"] | None
    max_tokens: Count
    max_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None


def problems(config: Config) -> Iterator[str]:
    """A budget without prices."""
    return _settings(config).problems("teacher")


def require(config: Config) -> None:
    """ConfigError unless the client is installed, and there is a key."""
    client.require(_settings(config))


def announce(config: Config) -> str:
    """Which model, where, and how often it is asked."""
    stage = _stage(config)
    settings = _settings(config)
    limit = "" if settings.budget is None else f", for at most {settings.budget:g} dollars"
    often = ", several times a picture (stage.arms)" if stage.arms else ""
    return f"{settings.model} at {settings.base_url}{often}{limit}"


def teacher(config: Config, folder: RunFolder) -> OpenAI:
    """Who asks the model that a run names, and pays for it in the run's name."""
    settings = _settings(config)
    kept = Path(settings.replies or folder.outputs / "replies.sqlite")
    types = vocabulary(config.rewards.vocabulary or "default")
    return OpenAI(settings, Replies(kept, str(folder.path)), _stage(config), types)


def _stage(config: Config) -> ExpertSettings:
    assert isinstance(config.stage, ExpertSettings)
    return config.stage


def _settings(config: Config) -> Settings:
    found = _stage(config).teacher
    assert isinstance(found, Settings)
    return found


class OpenAI:
    """Writes what a model says."""

    def __init__(
        self, settings: Settings, replies: Replies, stage: ExpertSettings, types: Vocabulary
    ) -> None:
        self.settings, self.stage, self.types = settings, stage, types
        form = None if settings.structured is None else _form(settings.structured)
        self.client = Client(settings, replies, form=form)
        self.writer = {
            "model": settings.model,
            "base_url": settings.base_url,
            "prompt": hashlib.sha256(PROMPT.read_bytes()).hexdigest(),
        }
        environment = Environment(
            loader=FileSystemLoader(PROMPT.parent),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
            autoescape=False,  # words for a model, not HTML
        )
        self.prompt = environment.get_template(PROMPT.name)

    def write(self, pictures: Iterable[Sequence[Asked]]) -> Iterator[Sequence[Draft | Rejection]]:
        """What it says of each picture, in their order. Raises ServiceError."""
        sizes, waiting = deque[int](), dict[int, Asked]()
        done: dict[int, Draft | Rejection] = {}
        numbers, first = count(), 0  # `first`: of the questions about the picture that comes next

        def questions() -> Iterator[Callable[[], Messages]]:
            for asked in pictures:
                sizes.append(len(asked))
                for each in asked:
                    waiting[next(numbers)] = each
                    yield partial(self.messages, each)

        for number, (reply,) in self.client.ask(questions(), self.settings.max_tokens):
            done[number] = self._read(waiting.pop(number), reply)
            while sizes and all(n in done for n in range(first, first + sizes[0])):
                size = sizes.popleft()
                yield [done.pop(n) for n in range(first, first + size)]
                first += size
        yield from ([] for _ in sizes)  # pictures at the end about which nothing is asked

    def close(self) -> Mapping[str, Any]:
        """Say what asking cost."""
        spent = self.client.spent
        print(spent.in_words(), flush=True)
        self.client.replies.close()
        return asdict(spent)

    def messages(self, asked: Asked) -> Messages:
        """The question about a picture: words and pictures."""
        shown = [self._scaled(images.open_image(each)) for each in (asked.reference, asked.sample)]
        mask = images.open_mask(asked.sample)
        if asked.facts.defect is not None and mask is not None:
            marked = outlined(shown[1], mask, outline(asked.facts))
            shown += [] if marked is None else [marked]
        words = self.prompt.render(
            facts=asked.facts,
            defect=asked.facts.defect,
            place=asked.place,
            at=in_text(asked.place) if asked.place and asked.place != WHOLE_IMAGE else None,
            types=self._types(asked),
            percent=percent,
            outline=OUTLINES[outline(asked.facts)][0] if len(shown) > 2 else None,
            stage=self.stage,
        )
        if words.count("{image}") != len(shown):
            raise DataError(
                f"{asked.sample.id}: its product or type is called by {{image}}, which stands for "
                "a picture in what a teacher is asked. Give it another name."
            )
        return client.messages(Conversation(words), shown)

    def _scaled(self, picture: Image.Image) -> Image.Image:
        if self.settings.max_size is None:
            return picture
        width, height = self.settings.max_size
        smaller = picture.copy()
        smaller.thumbnail((width, height), Image.Resampling.LANCZOS)
        return smaller

    def _types(self, asked: Asked) -> list[str]:
        """The names that a type may be given: where only its class is labelled, finer ones too."""
        defect = asked.facts.defect
        if defect is None:
            return []
        if defect.coarse is None or (defect.fine != defect.coarse and not asked.coarse):
            return [defect.fine]
        return [*(() if asked.coarse else self.types.kinds(defect.coarse)), defect.coarse]

    def _read(self, asked: Asked, reply: Reply) -> Draft | Rejection:
        if reply.stop == "refused":
            return Rejection("refused", reply.text[:SHOWN])
        if reply.stop == "length":
            return Rejection("cut reply", f"it is longer than {self.settings.max_tokens} tokens")
        try:
            said = Said.model_validate_json(_FENCE.sub(r"\1", reply.text.strip()))
            good = asked.facts.defect is None
            if (said.type == NO_TYPE) is not good:
                raise ValueError(f"it has the type {said.type!r}")
        except ValueError as error:  # pydantic's are some
            why = str(error).splitlines()
            return Rejection("malformed reply", f"{' '.join(why)[:SHOWN]}: {reply.text[:SHOWN]}")
        return Draft(
            " ".join(said.description.split()),
            " ".join(said.reasoning.split()),
            None if good else said.type,
            () if good else OUTLINES[outline(asked.facts)],
        )


class Said(BaseModel):
    """What a reply has to hold, and nothing else; the type of a good picture is `NO_TYPE`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: Annotated[str, Field(min_length=1)]
    reasoning: Annotated[str, Field(min_length=1)]
    type: Annotated[str, Field(min_length=1)]


def _form(structured: Literal["json_schema", "json_object"]) -> dict[str, Any]:
    """The `response_format` of OpenAI's interface."""
    if structured == "json_object":
        return {"type": structured}
    schema = {"name": "text", "strict": True, "schema": Said.model_json_schema()}
    return {"type": structured, "json_schema": schema}


# --- the outline ---------------------------------------------------------------------------------


def outline(facts: Facts) -> tuple[int, int, int]:
    """The color for the outline of a defect: the first that none of the picture's is called by."""
    assert facts.defect is not None
    seen = f"{facts.colour} {facts.defect.colour} {facts.defect.colour_around}".split()
    return next(color for color, words in OUTLINES.items() if not set(words) & set(seen))


def outlined(
    picture: Image.Image, mask: NDArray[np.bool_], color: tuple[int, int, int]
) -> Image.Image | None:
    """A picture with a line around what a mask [H, W] marks, a little off, so that it hides none of
    it; the mask may be larger. None: there is no room for one, the mask fills the picture."""
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    marked = np.asarray(whole.resize(picture.size, Image.Resampling.BOX)) > 0
    width = max(2, round(min(picture.size) / LINES))
    distance = np.asarray(ndimage.distance_transform_edt(~marked))
    line = (distance > width) & (distance <= 2 * width)
    if not line.any():
        return None
    pixels = np.array(picture)
    pixels[line] = color
    return Image.fromarray(pixels)
