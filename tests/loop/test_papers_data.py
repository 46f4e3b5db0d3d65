"""The data sets of the papers in training and evaluation: their own words are the target, their own
references are shown, their own questions are asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from miniatures import GOOD, SCRATCHED, anomaly_r1, expert_ad, mmad
from small_run import SMALL

from iad_r1 import data
from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.loops import evaluate, lengths, sft
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import corpus
from iad_r1.loops.results import result_of
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder


def small(*overrides: str) -> Config:
    return compose.compose([*(o for o in SMALL if not o.startswith("data.")), *overrides])


@pytest.fixture
def context(tmp_path):
    root = expert_ad(tmp_path / "set")
    chosen = ["data=expert_ad", f"data.root={root}", "stage.tasks=[sft,grpo]"]
    config = small(*chosen, "sft.one_shot_share=0")
    folder = RunFolder.create(tmp_path, config.name)
    dataset = data.for_run(config)
    path = tiny.build(folder.checkpoint("base"), corpus(config, dataset), 400, 9216, seed=0)
    return Context(config, folder, None, dataset, Backbone.load(path), "base")


def test_pa_sft_is_trained_on_the_words_of_its_list_beside_the_pictures_of_the_item(context):
    phase = sft._Phase(context, context.config.sft.phases[0], 0)
    rows = phase.rows(list(context.dataset.sft), 0)
    for row, sample in zip(rows, context.dataset.sft, strict=True):
        assert row["target"] in (GOOD, SCRATCHED)
        assert ("score mark" in row["target"]) == (sample.solution.answer == "Yes")
        assert row["prompt"].count("{image}") == 1 + sample.shots
    assert sum(sample.shots for sample in context.dataset.sft) == 2


def test_sc_grpo_asks_with_the_references_of_an_item(context):
    collector = Collector(context)
    drawn = collector.collect(context.dataset.rl[:4], 0, Clock())
    alone, _, pair, _ = drawn.prompts
    assert [sample.shots for sample in context.dataset.rl[:4]] == [0, 0, 1, 1]
    pictures = [len(prompt.inputs["image_grid_thw"]) for prompt in drawn.prompts]
    assert pictures == [1, 1, 2, 2]
    assert pair.inputs["input_ids"].shape[-1] > alone.inputs["input_ids"].shape[-1]
    assert lengths.derived(context) == context.config
    longest = context.folder.read_json("manifest.json")["longest_prompts"]
    assert longest["grpo"]["tokens"] == pair.inputs["input_ids"].shape[-1]


def test_vllm_needs_room_for_the_references(context):
    with pytest.raises(DataError, match=r"expert_ad/rl/2 is shown with 1 reference pictures, more"):
        lengths._check_pictures(context.dataset.rl, most=1)
    lengths._check_pictures(context.dataset.rl, most=2)


def test_questions_of_mmad_are_asked_and_judged_by_their_letters(context, tmp_path):
    config = small("stage=evaluate", "init=x", "benchmark=mmad",
                   f"benchmark.mmad.root={mmad(tmp_path / 'mmad')}")  # fmt: skip
    samples = data.for_run(config).test["mmad_VisA"]
    asking = evaluate.open_asking(config, context.backbone)
    found = [answer for batch in asking.answers(samples, "mmad_VisA", 1) for answer in batch]
    assert [answer.id for answer in found] == [sample.id for sample in samples]
    for answer, sample in zip(found, samples, strict=True):
        assert (answer.gold_answer, answer.subtask) == (
            sample.solution.answer, sample.question.subtask,
        )  # fmt: skip
        assert answer.answer in {*"ABCDE", "invalid"} and len(answer.references) == 1
    row = result_of(context.config, context.stage, "mmad_VisA", 1, found)
    assert (row["dataset"], row["n"], row["balanced_accuracy"]) == ("VisA", 10, None)


def test_questions_of_anomaly_r1_are_rewarded_by_their_letters(context, tmp_path):
    config = small("stage=grpo", "init=x", "stage.tasks=[grpo]", "data=anomaly_r1",
                   "rewards=anomaly_r1_released", "grpo.prompt=anomaly_r1_train",
                   f"data.root={anomaly_r1(tmp_path / 'r1')}")  # fmt: skip
    context.config, context.dataset = config, data.for_run(config)
    collector = Collector(context)
    drawn = collector.collect(context.dataset.rl[:4], 0, Clock())
    assert [group.sample.id for group in drawn.groups] == [s.id for s in context.dataset.rl[:4]]
    for group in drawn.groups:
        right = f"<think>It is so.</think><answer>{group.sample.solution.answer}</answer>"
        scores = collector.score(
            [group.sample], [[replace(group.completions[0], text=text) for text in (right, "?")]]
        )
        assert [score.total > 0 for score in scores[0]] == [True, False]
