"""One picture, one verdict: the weights, prompt and grid of a run at hand, or nearest good
patches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iad_r1 import nearest, prompts
from iad_r1.backbones.backbone import Backbone
from iad_r1.data import images
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import as_grid
from iad_r1.judge.verdicts import Verdict, verdict
from iad_r1.loops import evaluate, lengths
from iad_r1.loops.compared import Compared
from iad_r1.loops.opening import corpus, open_backbone
from iad_r1.loops.operating_point import threshold
from iad_r1.settings.config import Config
from iad_r1.settings.predict import JudgingSettings
from iad_r1.settings.rollout import AnyVllmRollout
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import start_of
from iad_r1.types import Conversation, Sample, Solution

Picture = str | Path | Image.Image | NDArray[np.generic]
SPLIT = "predict"
# of pictures whose tokens are counted, to find the most that one takes
SHAPES = ((4096, 4096), (6000, 2000), (2000, 6000), (9000, 1000), (1000, 9000))


class Inspector:
    """Judges pictures one at a time or many, as `stage=evaluate` would with the same settings.

    Several threads may ask; they are answered one after the other.

    Args:
        config: of `stage=predict`, whose `images` may be left out, or of `stage=app`.

    Attributes:
        judge: the model that answers for pictures, or what compares them with good ones.
        seconds: until it was ready to be asked.

    Raises ConfigError, DataError or WeightsError where settings, validation or weights do not fit.
    """

    def __init__(self, config: Config) -> None:
        began = time.perf_counter()
        assert isinstance(config.stage, JudgingSettings)
        self.config, self.grid = config, as_grid(config.grid)
        self.batch_size = config.stage.batch_size
        self._thresholds: dict[int, float | None] = {}
        self.judge: evaluate.Asking | Compared = (
            Compared(config.patchcore, self.grid, config.seed)
            if config.method.name == "patchcore"
            else open_judge(config)
        )
        self._lock, self._numbers = Lock(), count(1)  # which threads may take at once
        self.seconds = time.perf_counter() - began

    def inspect(self, picture: Picture, references: Sequence[Picture] = ()) -> Verdict:
        """The verdict on a picture, shown after good pictures of the same product, or compared with
        them. What is remembered of good pictures that are given as files lasts for further calls.

        A picture is a path, a picture of Pillow, or an array: [H, W] or [H, W, 3 or 4] of 8 bits
        (RGB), or [H, W] of 16. Raises DataError if one cannot be read or there are too few
        references to compare with, ConfigError if the prompt allows fewer references.
        """
        return self.judged([self.sample(picture, self.shown(references))])[0]

    def inspect_all(
        self, pictures: Iterable[Picture], references: Sequence[Picture] = ()
    ) -> Iterator[Verdict]:
        """The verdict on each picture in turn; `stage.batch_size` of them are judged together."""
        source, shown = iter(pictures), self.shown(references)
        while batch := list(islice(source, self.batch_size)):
            yield from self.judged([self.sample(picture, shown) for picture in batch])

    def sample(
        self, picture: Picture, references: tuple[Sample, ...] = (), name: str | None = None
    ) -> Sample:
        """A picture as one of a data set of which nothing is known. `name` tells it from others;
        None: its path, or a number. A file is opened when it is judged."""
        if name is None:
            is_file = isinstance(picture, str | Path)
            name = str(picture) if is_file else f"picture {next(self._numbers)}"
        unknown = Solution("No")  # nobody reads it
        return Sample(name, "", SPLIT, "", _image(picture, name), unknown, references=references)

    def shown(self, references: Sequence[Picture]) -> tuple[Sample, ...]:
        """Good pictures, to be shown with others or, by nearest good patches, remembered at once.
        ConfigError if the prompt allows fewer, DataError if they are too few to compare with."""
        config, shots = self.config, len(references)
        if isinstance(self.judge, Compared):
            chosen = nearest.chosen(references, config.patchcore, config.seed)
            shown = self._named(chosen)
            with self._lock:
                self.judge.remembered(shown)
            return shown
        prompts.conversation(config.evaluate.prompt, shots=shots)
        rollout = config.rollout
        if isinstance(rollout, AnyVllmRollout) and shots >= rollout.max_images:
            raise ConfigError(
                f"{shots} references and a picture are more than rollout.max_images="
                f"{rollout.max_images}. Use rollout.max_images={shots + 1}."
            )
        return self._named(references)

    def _named(self, references: Sequence[Picture]) -> tuple[Sample, ...]:
        return tuple(self.sample(one, name=f"reference {n}") for n, one in enumerate(references))

    def judged(self, samples: Sequence[Sample]) -> list[Verdict]:
        """The verdicts on samples with as many references each, in their order; their names
        differ."""
        shots = len(samples[0].references)
        least = self.threshold(shots)  # refused before anything is asked
        with self._lock:
            if isinstance(self.judge, Compared):
                return self.judge.verdicts(samples, least)
            began = time.perf_counter()
            found = {
                answer.id: answer
                for part in self.judge.answers(samples, SPLIT, shots)
                for answer in part
            }
            seconds = (time.perf_counter() - began) / len(samples)
        return [verdict(found[sample.id], self.grid, least, seconds) for sample in samples]

    def threshold(self, shots: int) -> float | None:
        """P(yes), or score, from which a picture shown with so many references is defective; None:
        the model's own word decides, or the good pictures do."""
        if shots not in self._thresholds:
            self._thresholds[shots] = threshold(self.config, shots)
        return self._thresholds[shots]

    def close(self) -> None:
        """Give back what an engine holds; the inspector is not used again."""
        self.judge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_judge(config: Config) -> evaluate.Asking:
    """The model that the settings name, to be asked about pictures."""
    with tempfile.TemporaryDirectory() as place:  # for a twin, where weights=tiny
        start = start_of(str(config.init))
        backbone = open_backbone(config, RunFolder(Path(place)), start, lambda: corpus(config))
        return evaluate.open_asking(with_room(config, backbone), backbone)


def with_room(config: Config, backbone: Backbone) -> Config:
    """The settings with lengths that are null replaced by what the largest pictures take: those to
    come are not known. A longer prompt than the model was made for is refused."""
    asked, rollout, most = config.evaluate, config.rollout, backbone.positions
    if isinstance(rollout, AnyVllmRollout):
        if rollout.max_model_len is None:
            backbone.limit_pixels(asked.max_pixels)
            picture = most_tokens(backbone)
            words = backbone.text_tokens(_longest(asked.prompt, rollout.max_images - 1))
            needed = words + rollout.max_images * picture + asked.max_tokens + lengths.AGAIN
            rollout = rollout.model_copy(update={"max_model_len": min(most, needed)})
        most = rollout.max_model_len
    asked = asked.model_copy(update={"max_length": asked.max_length or most})
    return config.model_copy(update={"evaluate": asked, "rollout": rollout})


def most_tokens(backbone: Backbone) -> int:
    """Tokens of the largest picture, within the limit of now."""
    return max(backbone.picture_tokens(*size) for size in SHAPES)


def _longest(prompt: str, shots: int) -> Conversation:
    """The prompt with as many references as it allows, `shots` at most."""
    for fewer in range(shots, 0, -1):
        try:
            return prompts.conversation(prompt, shots=fewer)
        except ConfigError:
            continue
    return prompts.conversation(prompt)


def _image(picture: Picture, name: str) -> Path | Image.Image:
    """A picture as samples hold it: a file stays a file. Raises DataError."""
    if isinstance(picture, str | Path):
        return Path(picture)
    if isinstance(picture, Image.Image):
        return images.as_shown(picture, name)
    values = np.asarray(picture)
    colours = values.ndim == 3 and values.shape[2] in (3, 4) and values.dtype == np.uint8
    grey = values.ndim == 2 and values.dtype in (np.uint8, np.uint16)
    if not (colours or grey) or not values.size:
        raise DataError(
            f"{name} is an array of {values.dtype} {list(values.shape)}. Give [H, W, 3] of uint8 "
            "(RGB), or [H, W] of uint8 or uint16."
        )
    return images.as_shown(Image.fromarray(np.ascontiguousarray(values)), name)
