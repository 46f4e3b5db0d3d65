"""Nearest good patches judge what is evaluated: what a model has to beat, and nothing is trained.

Their answers are in `predictions/patchcore.<split>.0shot.jsonl`, graded like those of a model. They
name no type of defect. `score` says how defective a picture is; 1 is the threshold, which good
pictures alone have chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from iad_r1 import nearest
from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.grid import as_grid, words
from iad_r1.judge import averages
from iad_r1.judge.grade import Grader, grade
from iad_r1.loops import evaluate
from iad_r1.loops.results import result_of, splits, tested
from iad_r1.nearest import patchcore
from iad_r1.nearest.patchcore import Found
from iad_r1.processes import distributed
from iad_r1.report import gallery
from iad_r1.report.wording import PATCHCORE
from iad_r1.rewards import vocabulary
from iad_r1.settings.config import Config
from iad_r1.store.progress import Bar, progress
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Completion, Dataset, Prediction, Sample, StopReason

Splits = dict[str, Sequence[Sample]]


def run(
    config: Config, folder: RunFolder, dataset: Dataset, chosen: Splits
) -> list[dict[str, Any]]:
    """Judge these splits; returns a row of results for each, last the means over benchmarks. What
    an earlier process has judged is not judged again."""
    rows = []
    bar = progress(PATCHCORE, sum(map(len, chosen.values()))) if distributed.is_main() else None
    with bar or nullcontext(Bar()) as shown:
        for split, samples in chosen.items():
            path = folder.predictions(PATCHCORE, split, 0)
            ask = partial(_answers, config, folder, dataset, split)
            answered = evaluate.answer_all(path, samples, ask, shown)
            rows.append(result_of(config, PATCHCORE, split, 0, answered))
    return [*rows, *averages.of_results(rows, tested(config, dataset))]


def required(config: Config, dataset: Dataset) -> Splits:
    """The splits to judge where nothing else does. DataError if one of them cannot be."""
    found, said = able(config, dataset)
    if said:
        raise DataError(
            f"method=patchcore compares pictures with good ones of the training part, but "
            f"{' and '.join(said)}. Add good pictures, or evaluate a model (method=model)."
        )
    return found


def able(config: Config, dataset: Dataset) -> tuple[Splits, list[str]]:
    """The splits that can be judged, and a sentence for each that cannot."""
    found: Splits = {}
    said = []
    for split, samples in splits(config, dataset).items():
        good = dataset.good.get(samples[0].split, {})
        short = {s.product for s in samples if len(good.get(s.product, ())) < nearest.LEAST}
        if any(sample.question.options is not None for sample in samples):
            said.append(f"{split} asks a multiple choice")
        elif short:
            some = ", ".join(sorted(short)[:3])
            said.append(f"{split} has fewer than {nearest.LEAST} good pictures of {some}")
        else:
            found[split] = samples
    return found, said


def beside(config: Config, dataset: Dataset) -> Splits:
    """The splits to judge beside a model, as `patchcore.beside` says. Says which are too large."""
    settings = config.patchcore
    if settings.beside == "never" or "evaluate" not in config.tasks():
        return {}
    found, _ = able(config, dataset)
    if settings.beside == "always":
        return found
    if not nearest.installed():
        return {}
    photographs = {n: s for n, s in found.items() if not isinstance(s[0].image, Image.Image)}
    for split, samples in photographs.items():
        if len(samples) > settings.beside_limit and distributed.is_main():
            print(
                f"{split}: no comparison with nearest good patches, because {len(samples):,} "
                f"pictures are more than patchcore.beside_limit={settings.beside_limit:,}",
                flush=True,
            )
    return {n: s for n, s in photographs.items() if len(s) <= settings.beside_limit}


def _answers(
    config: Config, folder: RunFolder, dataset: Dataset, split: str, samples: Sequence[Sample]
) -> Iterator[list[Prediction]]:
    """Predictions as they are made, a batch of every rank at a time, one product after another.
    Heat maps of the report's pictures are kept beside them."""
    types = vocabulary(config.rewards.vocabulary or "default")
    grader = Grader(as_grid(config.grid), types)
    products: dict[str, list[Sample]] = {}
    for sample in samples:
        products.setdefault(sample.product, []).append(sample)
    for product, of_product in products.items():
        ones = dataset.good[of_product[0].split][product]
        kept = nearest.chosen(ones, config.patchcore, config.seed)
        pictures = (images.open_image(one) for one in kept)
        good = patchcore.remember(pictures, config.patchcore, config.seed)
        size = config.evaluate.batch_size * distributed.world()
        for start in range(0, len(of_product), size):
            mine = distributed.share(of_product[start : start + size])
            found = [(sample, good.judge(images.open_image(sample))) for sample in mine]
            for sample, judged in found:
                gallery.keep_heat(folder.path, sample, judged.heat)
            answers = [prediction(grader, sample, judged, split) for sample, judged in found]
            yield [answer for part in distributed.everyone(answers) for answer in part]


def prediction(grader: Grader, sample: Sample, found: Found, split: str) -> Prediction:
    """What was found, written as a model would, and graded by the same judge."""
    place = words(found.cell(grader.grid), grader.grid)
    verdict = (
        f"<location>{place}</location><type>anomaly</type><answer>Yes</answer>"
        if found.defective
        else "<answer>No</answer>"
    )
    text = f"<think>Score {found.score:.3f}; defective above 1.</think>{verdict}"
    mask = images.open_mask(sample) if sample.solution.answer == "Yes" else None
    said = Completion(text, (), (), StopReason.STOP)
    graded = grade(grader, sample, said, split=split, mask=mask)
    return replace(graded, type=None, type_correct=None, score=found.score)
