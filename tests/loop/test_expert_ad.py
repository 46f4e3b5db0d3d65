"""Training on Expert-AD: its own words are the target, its own references are shown."""

from __future__ import annotations

import pytest
from miniatures import GOOD, SCRATCHED, expert_ad
from small_run import SMALL

from iad_r1 import data
from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.loops import lengths, sft
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import corpus
from iad_r1.store.run_folder import RunFolder


@pytest.fixture
def context(tmp_path):
    small = [option for option in SMALL if not option.startswith("data.")]
    config = compose.compose(
        [*small, "data=expert_ad", f"data.root={expert_ad(tmp_path / 'set')}",
         "stage.tasks=[sft,grpo]", "sft.one_shot_share=0"]
    )  # fmt: skip
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
