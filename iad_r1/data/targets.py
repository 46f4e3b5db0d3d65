"""PA-SFT targets by rule: what a sample's annotations say, in the two patterns of IAD-R1 (A.1).

    <think>...</think><answer>No</answer>
    <think>...</think><location>top left</location><type>scratch</type><answer>Yes</answer>

A sample whose data set brings its completion is trained on that, word for word.

The reasoning by rule perceives, compares with what is expected, locates and names, and decides. It
says only what the annotations say, in about 18 words: on a CPU every token of a rollout costs time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from iad_r1.boxes import Place
from iad_r1.errors import DataError
from iad_r1.grid import Grid, words
from iad_r1.types import Sample

WHOLE_IMAGE = words(0, Grid(1, 1))
UNNAMED = "defect"  # fills <type> where the type is not annotated; never trained

# (perceived and expected, sound, defective); a sample always gets the same one for a seed
_REASONING = (
    (
        "I scan the surface, expecting it clean and intact.",
        "It is so from edge to edge.",
        "{At} it differs{kind}.",
    ),
    (
        "I check all regions against what a good part shows.",
        "Nothing differs anywhere.",
        "{At} one is off{kind}.",
    ),
    (
        "I compare every area with a sound part.",
        "All of them match closely.",
        "Something stands out {at}{kind}.",
    ),
)


PAPERS = Grid(3, 3)  # the papers' grid


@dataclass(frozen=True)
class Target:
    """What a sample's completion should be.

    `untrained` holds the character spans (start, end) of `text` that no annotation supports: they
    keep the pattern complete, and the loss leaves them out. They are never labels. `verdict` is the
    span of the first word that a good and a defective picture do not share, where it is known.
    """

    text: str
    untrained: tuple[tuple[int, int], ...] = ()
    verdict: tuple[int, int] | None = None


def chain_of_thought(
    sample: Sample, seed: int, grid: Grid = PAPERS, place: Place | None = None
) -> Target:
    """The target with its reasoning, the same for a sample and seed every time: as its data set
    has written it, else by rule.

    Where a defect's place is not annotated, `<location>` holds a pseudo-random cell of `grid`,
    drawn from `seed` and the sample's id; where its type is not, `<type>` holds "defect". Both are
    `untrained`, and the reasoning mentions neither. With `place`, `<location>` holds numbers; the
    reasoning names the cell.

    Raises DataError where there is no rule, or words of the data set's own cannot hold numbers.
    """
    if sample.target is not None:
        if place is not None:
            raise DataError(
                f"{sample.id}: its data set has written its answer, with the place in words. Use "
                "location_format=words, or other data."
            )
        return Target(sample.target)
    stream = random.Random(f"{seed}/{sample.id}")
    expected, sound, defective = stream.choice(_REASONING)
    solution = sample.solution
    if sample.question.options is not None:
        raise DataError(
            f"{sample.id} is a multiple choice: there is no rule for its chain of thought."
        )
    defect = solution.answer == "Yes"
    finding = _finding(defective, solution.location, solution.type) if defect else sound
    begin = len(f"<think>{expected} ")
    verdict = (begin, begin + len(finding.split()[0]))
    if not defect:
        text = f"<think>{expected} {finding} It is fine.</think><answer>No</answer>"
        return Target(text, verdict=verdict)
    true, cell = solution.location, stream.randrange(grid.cells)
    filler = words(cell, grid)
    if place is not None:
        true, filler = place.text, place.of_cell(cell, grid)
    pieces = [
        (f"<think>{expected} {finding} It is defective.</think><location>", True),
        (true or filler, bool(true)),
        ("</location><type>", True),
        (solution.type or UNNAMED, bool(solution.type)),
        ("</type><answer>Yes</answer>", True),
    ]
    return replace(_joined(pieces), verdict=verdict)


def direct_answer(
    sample: Sample, seed: int, grid: Grid | None = None, place: Place | None = None
) -> Target:
    """The verdict alone: the control without reasoning. Only the sample is looked at."""
    begin, said = len("<answer>"), sample.solution.answer
    return Target(f"<answer>{said}</answer>", verdict=(begin, begin + len(said)))


def _finding(template: str, location: str | None, kind: str | None) -> str:
    at = in_text(location)
    return template.format(at=at, At=at[:1].upper() + at[1:], kind=f": {kind}" if kind else "")


def in_text(location: str | None) -> str:
    """Where, in running text: "at the top left", "at row 2 of 5, column 4 of 5", "somewhere"."""
    if location is None or location == WHOLE_IMAGE:
        return "somewhere"
    return f"at {location}" if location.startswith("row ") else f"at the {location}"


def _joined(pieces: list[tuple[str, bool]]) -> Target:
    """Pieces of text and whether each is trained, as one target."""
    text, untrained = "", []
    for piece, trained in pieces:
        if not trained:
            untrained.append((len(text), len(text) + len(piece)))
        text += piece
    return Target(text, tuple(untrained))
