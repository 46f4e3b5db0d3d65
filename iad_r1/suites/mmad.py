"""Files as MMAD's scripts write them, of answers to its questions.

    answers_<shots>_shot_<model>.json           an entry per question, in the order asked
    answers_<shots>_shot_<model>_accuracy.csv   what the released script makes of that file

`gpt_answer` is the letter that MMAD's scripts read in the completion. The completion itself is in a
key of ours that they leave alone, so that `stage=score` judges such a file as the evaluation was.
Where the likeliest letter has answered and not the text, it is the completion.
The table has the columns of those that MMAD has published, sets in rows, percent.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iad_r1.judge import mmad
from iad_r1.schema import INVALID
from iad_r1.store.run_folder import write_json, write_text
from iad_r1.types import Prediction, Sample, StopReason

DETECTED = ("Recall", "Precision", "F1", "Overkill", "Miss")


def write(
    folder: Path,
    model: str,
    answers: Mapping[mmad.Place, Sequence[Prediction]],
    samples: Iterable[Sample],
) -> list[Path]:
    """Both files in `folder` for every stage and number of shots that answered MMAD's questions;
    returns those with the answers. The model is called `<model>_<stage>`."""
    asked = {sample.id: sample for sample in samples}
    found: dict[tuple[str, int], list[Prediction]] = {}
    for (stage, _, shots), rows in answers.items():
        found.setdefault((stage, shots), []).extend(r for r in rows if r.subtask in mmad.SUBTASKS)
    written = []
    for (stage, shots), rows in found.items():
        if rows:
            folder.mkdir(exist_ok=True)
            name = f"answers_{shots}_shot_{model}_{stage}"
            written.append(
                write_json(folder / f"{name}.json", [entry(row, asked[row.id]) for row in rows])
            )
            write_text(folder / f"{name}_accuracy.csv", accuracy(rows))
    return written


def entry(row: Prediction, sample: Sample) -> dict[str, Any]:
    """An answer as MMAD's scripts write it, with what was said."""
    options = dict(sample.question.options or {})
    number = int(row.id.rpartition("#")[2]) + 1
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    said = row.released_answer
    letter = "" if row.answer == INVALID else row.answer
    return {
        "image": mmad.image_of(row),
        "question": {
            "type": "text",
            "text": f"Question {number}: {sample.question.text} \n{listed}",
            "options": options,
        },
        "question_type": row.subtask,
        "correct_answer": row.gold_answer,
        "gpt_answer": "" if said is None or said == INVALID else said,
        "completion": row.completion if row.letters is None else letter,
        "stop": row.stop if row.letters is None else StopReason.STOP,
    }


def accuracy(rows: Sequence[Prediction]) -> str:
    """The table, as CSV."""
    shares = mmad.released_shares(rows)
    tasks = [task for task in mmad.SUBTASKS if any(task in of_set for of_set in shares.values())]
    table = {
        name: {mmad.AVERAGE: float(np.mean([of_set[task] for task in tasks])), **of_set}
        for name, of_set in shares.items()
    }
    detected = DETECTED if mmad.DETECTION in tasks else ()
    columns = [*tasks, mmad.AVERAGE, *detected]
    means = {name: float(np.mean([row[name] for row in table.values()])) for name in columns}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["", *columns])
    for name, row in {**table, mmad.AVERAGE: means}.items():
        writer.writerow([name, *(row[column] for column in columns)])
    return out.getvalue()
