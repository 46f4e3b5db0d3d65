"""A run whose places are boxes: the same numbers are taught, rewarded, judged and shown."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from small_run import logged

from iad_r1.data.targets import chain_of_thought
from iad_r1.errors import ConfigError, DataError
from iad_r1.grid import as_grid
from iad_r1.loops import evaluate, lengths, opening, sft
from iad_r1.loops.collect import Collector
from iad_r1.report import gallery, page
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.stages import pipeline
from iad_r1.types import Completion, StopReason

BOXES = ["location_format=box", "rewards=sc_grpo_box", "evaluate.shots=[0]"]


@pytest.fixture
def context(make_context):
    return make_context(*BOXES, "rollout.max_tokens=128", "evaluate.max_tokens=128")


def taught(context, samples) -> list[str]:
    """The targets of PA-SFT."""
    prompter, config = open_prompter(context.config, context.backbone, "sft"), context.config
    grid = as_grid(config.grid)
    return [chain_of_thought(s, config.seed, grid, prompter.place(s)).text for s in samples]


def parrot(texts):
    """A sampler's stream that says these texts, whatever it is asked."""

    def stream(prompts, sampling):
        for number, (_, text) in enumerate(zip(prompts, texts, strict=True)):
            yield number, [Completion(text, (1,), (-0.1,), StopReason.STOP)]

    return stream


@pytest.mark.slow
def test_what_pa_sft_teaches_earns_all_that_sc_grpo_pays(context):
    collector = Collector(context)
    samples = [collector.prompter.judged(sample) for sample in context.dataset.rl]
    said = [[Completion(text, (1,), (0.0,), StopReason.STOP)] for text in taught(context, samples)]
    for sample, (score,) in zip(samples, collector.score(samples, said), strict=True):
        wanted = 4.0 if sample.solution.answer == "Yes" else 2.0
        assert score.total == pytest.approx(wanted), sample.solution


@pytest.mark.parametrize(
    ("limit", "least", "size"),
    [pytest.param(9216, 1.0, 96, marks=pytest.mark.slow), (4096, 0.7, 64)],
)
def test_what_pa_sft_teaches_is_judged_to_lie_on_the_mask(
    make_context, monkeypatch, limit, least, size
):
    """Also where pictures are shown smaller than they are: boxes are turned back."""
    settings = [f"{stage}.max_pixels={limit}" for stage in ("sft", "evaluate")]
    context = make_context(*BOXES, *settings, "rollout.max_tokens=128", "evaluate.max_tokens=128")
    samples = context.dataset.test["seen"]
    texts = taught(context, samples)
    asking = evaluate.open_asking(context.config, context.backbone)
    monkeypatch.setattr(asking.sampler, "stream", parrot(texts))
    found = [answer for batch in asking.answers(samples, "seen", 0) for answer in batch]
    defective = [row for row in found if row.gold_answer == "yes"]
    assert defective and all(row.marked for row in found)
    for row in defective:
        assert row.marked is not None and row.marked.iou is not None
        assert row.marked.size == (size, size) and row.marked.picture == (96, 96)
        assert row.marked.iou >= least and (row.marked.iou < 1) == (limit < 9216)
        assert row.location is not None and row.location in (row.gold_cells or "")


@pytest.mark.slow
def test_numbers_and_the_cell_that_the_reasoning_names_weigh_as_much_as_words_do(context):
    phase = sft._Phase(context, context.config.sft.phases[0], 0)
    sample = next(s for s in context.dataset.sft if s.solution.answer == "Yes")
    encoded, weights = phase.target(sample, 0)
    inside = re.search(r"<location>(.*)</location>", context.backbone.decode(encoded.tokens))
    assert inside is not None and len(json.loads(inside[1])["bbox_2d"]) == 4
    heavy = [t for t, w in zip(encoded.tokens, weights, strict=True) if w > 1]
    said = context.backbone.decode(heavy)
    assert said.replace(" ", "") == f"{sample.solution.location}{inside[1]}".replace(" ", "")


@pytest.mark.slow
def test_answers_that_would_be_cut_off_are_refused_before_the_first_step(context, make_context):
    lengths.derived(context)
    with pytest.raises(ConfigError, match="max_tokens=12 would cut off answers as PA-SFT"):
        lengths.derived(make_context(*BOXES))


@pytest.mark.slow
def test_data_without_a_box_to_learn_are_refused(context):
    bare = [replace(sample, mask=None) for sample in context.dataset.sft]
    written = [replace(sample, target="<answer>No</answer>") for sample in context.dataset.sft]
    opening.check_places(context.config, context.dataset)
    for samples, message in (
        (bare, "none of .* has a mask"),
        (written, "their data set has written"),
    ):
        with pytest.raises(DataError, match=message):
            opening.check_places(context.config, replace(context.dataset, sft=samples, rl=()))


@pytest.mark.slow
def test_weights_that_learned_another_form_are_refused(context, make_context):
    folder = context.folder
    (folder.checkpoint("base")).rename(folder.checkpoint("sft"))
    folder.write_json("config.json", json.loads(context.config.model_dump_json()))
    ask = ["stage=evaluate", f"init={folder.path}"]
    assert pipeline.begin(make_context("location_format=box", *ask).config) is not None
    with pytest.raises(ConfigError, match="trained its answers with location_format=box"):
        pipeline.begin(make_context(*ask).config)


@pytest.mark.slow
def test_pa_sft_sc_grpo_evaluation_and_report_go_through_with_boxes(make_context, monkeypatch):
    context = make_context(
        *BOXES, "sft.phases.0.steps=4", "sft.phases.1.steps=2", "sft.phases.0.batch_size=8",
        "sft.phases.1.batch_size=8", "rollout.max_tokens=128", "evaluate.max_tokens=128",
    )  # fmt: skip
    losses: list[float] = []
    monkeypatch.setattr(context, "log", lambda stage, step, row: losses.append(row["loss"]))
    sft.train(context)
    assert losses[-1] < losses[0]
    monkeypatch.undo()
    steps = logged(context)
    assert len(steps) == 2 and all("reward_iou" in step for step in steps)

    samples = context.dataset.test["seen"]
    texts = taught(context, samples)
    honest = evaluate.open_asking

    def parroting(config, backbone):
        asking = honest(config, backbone)
        monkeypatch.setattr(asking.sampler, "stream", parrot(texts))
        return asking

    monkeypatch.setattr(evaluate, "open_asking", parroting)
    monkeypatch.setattr(evaluate, "splits", lambda config, dataset: {"seen": samples})
    (row,) = evaluate.run(context)
    assert row["boxes"]["iou"] == 100.0 and row["boxes"]["frames"] == ["shown"]
    assert 0 < row["boxes"]["chance"]["whole"] < 20
    gallery.save(context.folder.path, samples, 8)
    context.folder.write_json("config.json", json.loads(context.config.model_dump_json()))
    html = page.build(context.folder.path).read_text(encoding="utf-8")
    shown = [s for s in samples if s.solution.answer == "Yes"]
    assert html.count('<polygon class="named"') == len(shown) > 0
    assert "What the model marks, against the masks" in html
