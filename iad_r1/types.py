"""The vocabulary every room shares. Standard library only: importing this costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # how the options of a question are named


@dataclass(frozen=True)
class Question:
    """What is asked about an image, and what it may be answered with.

    `text` is None where the prompt asks in its own words. `options` maps letter to text, for a
    multiple choice; None: the answer is yes or no, and a "Yes" says where and of which type.
    `listed`: the text names the options already.
    """

    text: str | None = None
    options: Mapping[str, str] | None = None
    listed: bool = False
    knowledge: str | None = None  # of the product, to be put before the question
    subtask: str = ""  # of a benchmark that has several
    prompt: str | None = None  # the name of the prompt that asks it; None: the stage's

    def __post_init__(self) -> None:
        if self.options is not None and not (self.options and LETTERS.issuperset(self.options)):
            raise ValueError(f"options are named by capital letters, unlike {dict(self.options)}")

    @property
    def answers(self) -> tuple[str, ...]:
        """What a solution may say."""
        return ("Yes", "No") if self.options is None else tuple(self.options)


@dataclass(frozen=True)
class Solution:
    """What is true of one image: is there a defect, where, and of which type; or the letter that
    answers a question with options.

    `location` holds the grid's own words for the cell ("top left"); None when the source
    has no mask, so where the defect lies is unknown. Only a "Yes" carries location and type.
    """

    answer: str
    location: str | None = None
    type: str | None = None

    def __post_init__(self) -> None:
        if self.answer not in ("Yes", "No") and self.answer not in LETTERS:
            raise ValueError(f"answer is {self.answer!r}; it must be 'Yes', 'No' or a letter")
        if self.answer != "Yes" and (self.location or self.type):
            raise ValueError(f"a solution {self.answer!r} cannot name a location or a type: {self}")

    def as_tags(self) -> str:
        """The tag form of the papers' `solution` field, e.g. `<answer>No</answer>`."""
        location = f"<location>{self.location}</location>" if self.location else ""
        kind = f"<type>{self.type}</type>" if self.type else ""
        return f"{location}{kind}<answer>{self.answer}</answer>"


@dataclass(frozen=True)
class Cut:
    """A part of the picture in a file: `box` is left, top, right and bottom in pixels."""

    file: Path
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Mask:
    """Files that together mark where a picture is defective: non-zero, or zero if `inverted`. Where
    there is a `threshold`, values below that share of white stand for zero.

    `drawn_on` says whether a mask was drawn on a picture as it is `stored`, or as it is `shown`
    once the turn of its camera is applied; None: as its size tells.
    """

    files: tuple[Path, ...]
    inverted: bool = False
    drawn_on: Literal["stored", "shown"] | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Shapes:
    """Numbers of an annotation that together mark where a picture is defective.

    `outlines` are polygons (x0, y0, x1, y1, ...), in pixels whose corners are whole numbers; `runs`
    are COCO's compressed run lengths. `size` is the (width, height) of the picture as the
    annotation states it; None: outlines are in shares of width and height, and there are no runs.
    `drawn_on` as of a `Mask`.
    """

    outlines: tuple[tuple[float, ...], ...]
    runs: tuple[bytes, ...] = ()
    size: tuple[int, int] | None = None
    drawn_on: Literal["stored", "shown"] | None = None


@dataclass(frozen=True)
class Sample:
    """One image to judge. `id` is unique in its data set and is never shown to a model."""

    id: str
    dataset: str
    split: str
    product: str
    image: Path | Cut | Image  # a file, a part of one, or a picture drawn in memory
    solution: Solution
    # where it is defective, of the whole picture where `image` is a part; None: there is none
    mask: Mask | Shapes | Image | None = None
    references: tuple[Sample, ...] = ()  # normal images of the same product, for k-shot
    shots: int = 0  # the references that training always shows with it
    question: Question = Question()
    target: str | None = None  # the completion its data set has written; None: written by rule
    where: str = ""  # the row or file that describes it, for an error message

    def __post_init__(self) -> None:
        if self.solution.answer not in self.question.answers:
            raise ValueError(
                f"{self.id}: answer is {self.solution.answer!r}, but the question allows "
                f"{', '.join(self.question.answers)}"
            )


@dataclass(frozen=True)
class Conversation:
    """A rendered prompt. `text` holds one `{image}` for each picture, in reading order:
    references first, the image to judge last."""

    text: str
    system: str | None = None

    @property
    def images(self) -> int:
        """How many pictures the text asks for."""
        return self.text.count("{image}")


class StopReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # the token limit cut it off
    REFUSED = "refused"  # an outside model, or its filter, would not answer


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `tokens` includes the end-of-turn token when `stop` is STOP. `choice` are
    the probabilities of the words of `Sampling.choice`, which add up to 1; None where the
    completion does not come to them, or the sampler was not asked.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # natural log, of each token under the sampling policy
    stop: StopReason
    choice: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Score:
    """What one completion earns: the total and its named parts, before weighting."""

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One picture with its G completions and what each of them earned. `attempt` counts how often
    it was drawn anew, with another picture (0: not at all); `version` says which weights drew it:
    how many batches they had learned."""

    sample: Sample
    completions: Sequence[Completion]
    scores: Sequence[Score]
    attempt: int = 0
    version: int = 0

    def rewards(self) -> list[float]:
        """[G] totals."""
        return [score.total for score in self.scores]


@dataclass(frozen=True)
class Marked:
    """What an answer marks on its picture, in pixels of the picture, where it says so in numbers.

    `frame` and `size` say in which coordinates the model wrote it (`boxes.Frame`), and `picture`
    the size of the picture. The agreement with the mask of the defect is None where there is none.
    """

    frame: str
    size: tuple[int, int]
    picture: tuple[int, int]
    boxes: tuple[tuple[float, ...], ...]
    outlines: tuple[tuple[float, ...], ...]
    point: tuple[float, ...] | None  # the one place that it points at
    gold_box: tuple[int, ...] | None  # around all that the mask marks
    iou: float | None  # of that with the box around all that is named
    pointed: bool | None  # whether the point lies on the mask
    pixel_f1: float | None  # of the outlines, or else the boxes, with the mask


@dataclass(frozen=True)
class Prediction:
    """One evaluated image, as one line of `predictions/*.jsonl`.

    `answer` is "yes", "no" or "invalid"; of a question with options, a letter or "invalid".
    `status` is the parser's verdict on the whole text. `p_yes` is the model's probability of "Yes"
    against "No" where the answer is written; None where the question has options.
    """

    id: str
    dataset: str
    split: str
    product: str
    shots: int
    gold_answer: str  # "yes", "no" or a letter
    gold_location: str | None
    gold_type: str | None
    completion: str
    status: str
    answer: str
    location: str | None
    type: str | None
    location_correct: bool | None  # None: normal image, or the place is not annotated
    type_correct: bool | None  # None: normal image, or the type is not annotated
    p_yes: float | None
    n_tokens: int
    stop: str
    references: tuple[str, ...] = ()
    subtask: str = ""
    gold_option: str | None = None  # what the right letter stands for
    released_answer: str | None = None  # of a question with options, as MMAD's script reads it
    score: float | None = None  # of any scale, where there is no `p_yes`; higher: more defective
    gold_cells: str | None = None  # all cells that the mask of the defect touches
    marked: Marked | None = None  # then `location` is the cell it points at
    votes: tuple[str, ...] = ()  # all answers, where several were drawn; `answer` is the majority
    # of a question whose likeliest letter answers: the probability of each; empty: it came to none
    letters: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Dataset:
    """Everything one run reads, already split. Lists are in a fixed order for a given seed.

    `validation` and `test` map a split's name (e.g. "seen", "new") to its samples;
    `counts` says how many items were read, used and left out, and why. `fingerprints` holds that of
    everything that was read, by the section of its settings. `good` holds, by the split of a sample
    ("test.seen") and its product, good pictures to compare with, none of which is judged there;
    `leaks` by set to test or validate with the ids of training pictures that nearly equal one of
    its pictures.
    """

    name: str
    fingerprint: str
    sft: tuple[Sample, ...]
    rl: tuple[Sample, ...]
    validation: Mapping[str, tuple[Sample, ...]]
    test: Mapping[str, tuple[Sample, ...]]
    counts: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    good: Mapping[str, Mapping[str, tuple[Sample, ...]]] = field(default_factory=dict)
    leaks: Mapping[str, frozenset[str]] = field(default_factory=dict)
