"""Pictures prepared on other threads: the same numbers, the same errors, each file opened once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from iad_r1.data import images
from iad_r1.errors import DataError
from iad_r1.learn import optim
from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, grpo, sft
from iad_r1.types import Sample

TRAIN = {"sft": sft.train, "grpo": grpo.train}
SETTINGS = (
    "sft.phases.0.steps=2", "sft.phases.1.steps=1", "sft.phases.0.batch_size=4",
    "sft.phases.1.batch_size=4", "sft.one_shot_share=0.5", "grpo.steps=2", "rollout.max_tokens=4",
    "evaluate.splits=[test]", "evaluate.shots=[1]", "evaluate.batch_size=2", "evaluate.limit=3",
    "evaluate.max_tokens=4",
)  # fmt: skip
MEASURED = ("seconds_", "tokens_per_second", "peak_memory_mib", "host_memory_mib")


def on_disk(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """The same samples with files, those of their references too."""

    def write(sample: Sample) -> Sample:
        path = folder / f"{sample.id.replace('/', '-')}.png"
        assert isinstance(sample.image, Image.Image)
        sample.image.save(path)
        references = tuple(write(replace(s, references=())) for s in sample.references)
        return replace(sample, image=path, references=references)

    return [write(sample) for sample in samples]


@pytest.fixture
def with_threads(make_context, tmp_path, monkeypatch):
    """`with_threads(n)`: a run whose pictures are files, the list of what it logs, and how often
    each file was opened. Nothing is remembered, so every use of a picture opens it."""
    monkeypatch.setattr(images, "_REMEMBERED", images._Remembered(limit=0))
    true = images.opened

    def make(threads: int) -> tuple[Context, list[tuple[int, dict[str, float]]], Counter[Path]]:
        context = make_context(f"engine.picture_threads={threads}", *SETTINGS)
        data = context.dataset
        parts = {name: on_disk(getattr(data, name), tmp_path) for name in ("sft", "rl")}
        tests = {name: on_disk(samples, tmp_path) for name, samples in data.test.items()}
        context.dataset = replace(data, **parts, test=tests)
        logged: list[tuple[int, dict[str, float]]] = []

        def log(_stage: str, step: int, values: dict[str, Any]) -> None:
            kept = {k: v for k, v in values.items() if not k.startswith(MEASURED)}
            logged.append((step, kept))

        opened: Counter[Path] = Counter()

        def counted(path: Path, what: str) -> Image.Image:
            opened[path] += 1
            return true(path, what)

        monkeypatch.setattr(context, "log", log)
        monkeypatch.setattr(images, "opened", counted)
        return context, logged, opened

    return make


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAIN)
def test_training_has_the_same_metrics_and_weights_whatever_the_number_of_threads(
    with_threads, stage
):
    alone, expected, opened = with_threads(0)
    TRAIN[stage](alone)
    helped, found, opened_then = with_threads(2)
    TRAIN[stage](helped)
    assert found == expected and [step for step, _ in found] == [*range(len(found))] != [0]
    weights = alone.model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in helped.model.state_dict().items())
    assert opened_then.keys() == opened.keys()  # no picture is prepared in vain
    assert opened_then.total() <= opened.total()  # two may ask for the same reference at once


@pytest.mark.slow
def test_an_evaluation_has_the_same_answers_whatever_the_number_of_threads(with_threads):
    rows = [evaluate.run(with_threads(threads)[0]) for threads in (0, 2)]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAIN)
def test_a_picture_that_cannot_be_read_ends_the_run_at_its_own_batch(with_threads, stage):
    context, logged, _ = with_threads(2)
    samples, seed = getattr(context.dataset, {"sft": "sft", "grpo": "rl"}[stage]), 0
    first, second = optim.batches(samples, 4, 2, seed)
    broken = next(sample.image for sample in second if sample not in first)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        TRAIN[stage](context)
    assert str(caught.value) == (
        f"{broken}: this image cannot be read (image file is truncated). "
        "Replace the file or take it out of the data set."
    )
    assert [step for step, _ in logged] == [0]


def test_every_use_of_a_picture_opens_it_once(with_threads):
    context, _, opened = with_threads(2)
    samples = context.dataset.test["seen"][:4]
    asking = evaluate.open_asking(context.config, context.backbone)
    list(asking.answers(samples, split="seen", shots=0))
    assert opened == {sample.image: 1 for sample in samples}
    opened.clear()
    grpo.train(context)
    used = optim.batches(context.dataset.rl, 4, 2, context.config.seed)
    learned = [sample.image for batch in used for sample in batch]
    shown = learned  # in the completions that are kept of the first and of the last step
    assert opened == Counter(learned) + Counter(shown)


def test_a_tokenizer_that_was_saved_with_padding_can_be_shared_by_threads(make_context):
    """A call that had to switch it off would change the tokenizer under the others."""
    backbone = make_context().backbone
    backbone.tokenizer.backend_tokenizer.enable_padding(length=512)
    backbone.tokenizer.backend_tokenizer.enable_truncation(8)
    again = type(backbone)(backbone.model, backbone.processor)
    assert again.tokenizer.backend_tokenizer.padding is None
    assert again.tokenizer.backend_tokenizer.truncation is None
