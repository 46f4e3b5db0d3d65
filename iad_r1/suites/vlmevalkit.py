"""Tables for VLMEvalKit, one for every split, and the `config.json` that tells it what they are.

    LMUData=<folder> python run.py --config <folder>/config.json --judge exact_matching

Questions for yes or no go through its `ImageYORNDataset`, with the words of our prompt after the
pictures; those with options through its `ImageMCQDataset`, which has words of its own. Pictures are
named by their absolute paths, or stand in the table as base64; a row with the same pictures as an
earlier one names that row by its index. `category` and `l2-category` split the accuracy that it
reports.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from iad_r1 import prompts
from iad_r1.data import images
from iad_r1.errors import ConfigError, DataError
from iad_r1.store.run_folder import replacing, write_json
from iad_r1.suites import items
from iad_r1.types import Sample

KEPT = 32  # pictures
# what pandas reads as no value at all
EMPTY = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
         "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}  # fmt: skip


def write(
    folder: Path,
    splits: Mapping[str, Sequence[Sample]],
    asking: items.Asking,
    pictures: items.Pictures,
) -> list[str]:
    """Fill a folder; returns the names of its data sets. ConfigError if the prompt asks for tags,
    which its reading of yes and no does not know: a "no" in the reasoning spoils a "Yes"."""
    with_options = {split: s[0].question.options is not None for split, s in splits.items()}
    if not all(with_options.values()) and prompts.form(asking.prompt) == "tagged":
        raise ConfigError(
            f"evaluate.prompt={asking.prompt} asks for tags, and VLMEvalKit looks for a yes or a "
            "no anywhere in an answer. Use evaluate.prompt=base_test, or format=lmms_eval."
        )
    store, classes = items.Store(folder, pictures), {}
    for split, samples in splits.items():
        name = items.task_name(split)
        with replacing(folder / f"{name}.tsv") as table:
            _write(table, samples, asking, store)
        kind = "ImageMCQDataset" if with_options[split] else "ImageYORNDataset"
        classes[name] = {"class": kind, "dataset": name}
    write_json(folder / "config.json", {"model": {}, "data": classes})
    return list(classes)


def _write(
    table: TextIO, samples: Sequence[Sample], asking: items.Asking, store: items.Store
) -> None:
    inside = store.pictures == "inside"
    letters = sorted({letter for each in samples for letter in each.question.options or ()})
    head = ["index", "id", "question", *letters, "answer", "category", "l2-category"]
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    encoded, first = _Encoded(), dict[object, int]()  # the row with the same pictures
    writer.writerow([*head, "image" if inside else "image_path"])
    for number, item in enumerate(items.items(samples, asking)):
        sample, options = item.sample, item.sample.question.options or {}
        if lost := [text for text in options.values() if text.strip() in EMPTY]:
            raise DataError(
                f"{sample.where or sample.id}: VLMEvalKit reads the option {lost[0]!r} as none at "
                "all. Use format=lmms_eval."
            )
        row = first.setdefault(tuple(map(items.picture, item.pictures)), number)
        if not inside:
            shown = [str(store.path(s)) for s in item.pictures]
        else:
            shown = [str(row)] if row < number else [encoded.text(s) for s in item.pictures]
        writer.writerow([
            number, sample.id, _question(item), *(options.get(letter, "") for letter in letters),
            sample.solution.answer, item.group, sample.product,
            shown[0] if len(shown) == 1 else str(shown),
        ])  # fmt: skip


def _question(item: items.Item) -> str:
    asked = item.sample.question
    if asked.options is None:
        return items.text(item.words)
    return "\n".join(part for part in (asked.knowledge, asked.text) if part)


class _Encoded:
    """Pictures as base64. The last ones are kept: references are shown with many pictures."""

    def __init__(self) -> None:
        self.kept: dict[object, str] = {}

    def text(self, sample: Sample) -> str:
        if (key := items.picture(sample)) not in self.kept:
            out = io.BytesIO()
            images.open_image(sample).save(out, format="PNG")
            self.kept[key] = base64.b64encode(out.getvalue()).decode("ascii")
            if len(self.kept) > KEPT:
                del self.kept[next(iter(self.kept))]
        return self.kept[key]
