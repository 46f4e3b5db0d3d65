"""Each stage of a run has its own limit of picture size, and room for its longest prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from small_run import SMALL

from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.errors import ConfigError, DataError, MismatchError
from iad_r1.loops import lengths, pipeline
from iad_r1.rollouts.prompting import Prompter, open_prompter
from iad_r1.settings.rollout import VllmRollout

SHORT = ["stage=pipeline", "sft.phases.0.steps=1", "sft.phases.1.steps=1", "grpo.steps=1",
         "evaluate.limit=2", "sft.one_shot_share=0"]  # fmt: skip
SIDES = {"sft.max_pixels=9216": 96, "grpo.max_pixels=4096": 64, "evaluate.max_pixels=2048": 32}


def test_every_stage_of_a_run_shows_pictures_within_its_own_limit(make_context, monkeypatch):
    context = make_context(*SHORT, *SIDES)
    seen: list[tuple[str, int]] = []
    encode = Backbone.encode

    def noted(self: Backbone, conversation: Any, pictures: Any, name: str = "") -> Any:
        prompt = encode(self, conversation, pictures, name)
        grids = prompt.inputs["image_grid_thw"][:, 1:] * tiny.PATCH
        assert [list(p.size) for p in pictures] == grids.flip(1).tolist()
        seen.extend((pipeline_task[0], max(p.size)) for p in pictures)
        return prompt

    pipeline_task = ["evaluate"]
    train = pipeline.train

    def wrapped(given: Any, task: Any) -> None:
        pipeline_task[0] = task
        train(given, task)
        pipeline_task[0] = "evaluate"

    monkeypatch.setattr(pipeline, "train", wrapped)
    monkeypatch.setitem(pipeline.TRAIN, "pretrain", lambda given: None)
    monkeypatch.setattr(Backbone, "encode", noted)
    pipeline.take_tasks(context)
    assert set(seen) == {("sft", 96), ("grpo", 64), ("evaluate", 32)}
    # and what the run leaves behind knows no limit but that of the checkpoint it began with
    left = Backbone.load(context.folder.checkpoint("grpo"))
    assert left.processor.image_processor.size["longest_edge"] == 9216


def test_a_stage_whose_limit_was_taken_over_by_another_does_not_go_on(make_context):
    context = make_context(*SIDES)
    first = open_prompter(context.config, context.backbone, "grpo")
    open_prompter(context.config, context.backbone, "evaluate")
    with pytest.raises(MismatchError, match="max_pixels=4096 would encode them within 2048"):
        first.encode(context.dataset.rl[0])


def test_answers_of_a_data_set_that_would_be_cut_off_are_refused_before_the_first_step(
    make_context,
):
    context = make_context("stage=pipeline")
    chain = f"<think>{'I look at it. ' * 9}It is fine.</think><answer>No</answer>"
    taught = [replace(context.dataset.sft[0], target=chain), *context.dataset.sft[1:]]
    context.dataset = replace(context.dataset, sft=taught)
    needed = len(context.backbone.encode_target(chain).tokens)
    to_type = needed + needed // 4
    with pytest.raises(ConfigError) as refused:
        lengths.derived(context)
    assert str(refused.value) == (
        "evaluate.max_tokens=12 and rollout.max_tokens=12 would cut off answers as PA-SFT teaches "
        f"them: some take {needed} tokens. Use evaluate.max_tokens={to_type} "
        f"rollout.max_tokens={to_type}."
    )
    context.config = compose.compose([*SMALL, "stage=pipeline", "sft.target=direct"])
    lengths.derived(context)  # the answer alone is short


def with_vllm(context: Any, *overrides: str) -> Any:
    """Its settings for a run through vLLM."""
    context.config = compose.compose([*SMALL, "rollout=vllm", *overrides])
    return context


def test_vllm_is_given_room_for_the_longest_prompt_of_the_run_with_its_completion(make_context):
    context = with_vllm(make_context(), "stage=pipeline")
    found = lengths.derived(context).rollout
    assert isinstance(found, VllmRollout) and found.max_model_len is not None
    prompter = Prompter(context.backbone, context.config.evaluate.prompt)
    tests = [sample for part in context.dataset.test.values() for sample in part]
    longest = max(prompter.encode(s, 1).inputs["input_ids"].shape[-1] for s in tests)
    assert found.max_model_len == longest + context.config.evaluate.max_tokens
    noted = context.folder.read_json("manifest.json")["longest_prompts"]["evaluate"]
    assert noted["tokens"] == longest
    # a number that was set is kept where all fits, and refuses the run where something does not
    for most in (longest + 12, 2000):
        fitting = with_vllm(context, "stage=pipeline", f"rollout.max_model_len={most}")
        assert lengths.derived(fitting).rollout.model_dump()["max_model_len"] == most
    with pytest.raises(DataError) as caught:
        short = f"rollout.max_model_len={longest + 11}"
        lengths.derived(with_vllm(context, "stage=pipeline", short))
    said = str(caught.value)
    assert f"with 1 reference picture: its prompt has {longest} tokens" in said
    assert f"or rollout.max_model_len={longest + 12}" in said


@pytest.mark.parametrize("stage", ["sft", "grpo", "evaluate"])
def test_a_limit_that_refuses_a_sample_is_said_before_the_first_step(make_context, stage):
    context = make_context("stage=pipeline", f"{stage}.max_length=20")
    with pytest.raises(DataError, match=rf"more than {stage}\.max_length=20\. Set {stage}\.max_le"):
        lengths.derived(context)


def test_a_prompt_longer_than_the_model_was_made_for_is_refused_with_what_fits(make_context):
    context = make_context("stage=pipeline")
    prompter = open_prompter(context.config, context.backbone, "evaluate")
    tests = [sample for part in context.dataset.test.values() for sample in part]
    zero, one = (max(prompter.length(s, shots) for s in tests) + 12 for shots in (0, 1))
    context.model.config.get_text_config().max_position_embeddings = one
    assert lengths.derived(context) == context.config
    context.model.config.get_text_config().max_position_embeddings = one - 1
    with pytest.raises(ConfigError) as caught:
        lengths.derived(context)
    said = str(caught.value)
    assert f"more than the {one - 1} positions of tiny. What fits: evaluate.shots=[0], or " in said
    assert "evaluate.max_pixels=8192" in said
    context.model.config.get_text_config().max_position_embeddings = zero - 30
    with pytest.raises(ConfigError, match=r"positions of tiny\. Ask for shorter answers\."):
        lengths.derived(context)
