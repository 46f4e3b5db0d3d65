"""One completion against what is true of its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iad_r1 import prompts, schema
from iad_r1.grid import Grid, cells_touched, describe, location_score, words
from iad_r1.rewards.vocabulary import Vocabulary
from iad_r1.types import Completion, Marked, Prediction, Sample, StopReason


@dataclass(frozen=True)
class Grader:
    """How answers are read, and when a place and a type count as right.

    grid        whose cells the places name
    vocabulary  which types are of one class
    evaluator   how an answer is found in a completion (`schema.read_answer`)
    form        how the released scripts read what the prompt is answered with
    """

    grid: Grid
    vocabulary: Vocabulary
    evaluator: schema.Evaluator = "strict"
    form: schema.Form = "tagged"


def grade(
    grader: Grader,
    sample: Sample,
    completion: Completion,
    *,
    split: str,
    shots: int = 0,
    p_yes: float | None = None,
    mask: NDArray[np.bool_] | None = None,
    marked: Marked | None = None,
    letters: Mapping[str, float] | None = None,
) -> Prediction:
    """What was said against what is true.

    `mask` [H, W] is True where the picture is defective; None: not known, or it is not. `marked` is
    what the completion marks, where a place is said in numbers: its place is the cell that holds
    the point. `letters` are the probabilities of the options' letters where the likeliest of them
    answers, and not the text; empty: the completion did not come to its answer, which is invalid.
    The place is right when it names exactly the annotated cells; the type when the vocabulary puts
    it into the same class (`same_class`), or the words are equal.
    """
    gold, options = sample.solution, sample.question.options
    prompt = sample.question.prompt
    form = grader.form if prompt is None else prompts.form(prompt)
    truncated = completion.stop is StopReason.LENGTH
    parsed = schema.parse(completion.text, truncated, options)
    answer = schema.read_answer(completion.text, grader.evaluator, options, form, truncated)
    read = completion.text
    if letters is not None:
        read = max(letters, key=letters.__getitem__, default="")  # of equal ones the first
        answer = read or schema.INVALID
    place = parsed.location if marked is None else _cell(marked, grader.grid)
    return Prediction(
        id=sample.id,
        dataset=sample.dataset,
        split=split,
        product=sample.product,
        shots=shots,
        gold_answer=gold.answer if options else gold.answer.lower(),
        gold_location=gold.location,
        gold_type=gold.type,
        completion=completion.text,
        status=str(parsed.status),
        answer=answer,
        location=place,
        type=parsed.type,
        location_correct=_same_place(place, gold.location, grader.grid),
        type_correct=_same_class(parsed.type, gold.type, grader.vocabulary),
        p_yes=p_yes,
        n_tokens=len(completion.tokens),
        stop=str(completion.stop),
        references=tuple(reference.id for reference in sample.references[:shots]),
        subtask=sample.question.subtask,
        gold_option=options[gold.answer] if options else None,
        released_answer=schema.read_answer(read, "mmad_compat", options) if options else None,
        gold_cells=None
        if mask is None
        else describe(cells_touched(mask, grader.grid), grader.grid),
        marked=marked,
        letters=letters,
    )


def _cell(marked: Marked, grid: Grid) -> str | None:
    if marked.point is None:
        return None
    x, y = (at / side for at, side in zip(marked.point, marked.picture, strict=True))
    return words(grid.cell_at(x, y), grid)


def _same_place(said: str | None, true: str | None, grid: Grid) -> bool | None:
    if true is None:
        return None
    return said is not None and location_score(said, true, grid) == 1


def _same_class(said: str | None, true: str | None, names: Vocabulary) -> bool | None:
    if true is None:
        return None
    return said is not None and names.score(said, true) >= names.scores.same_class
