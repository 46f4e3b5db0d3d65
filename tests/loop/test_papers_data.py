"""The data sets of the papers in training and evaluation: their own words are the target, their own
references are shown, their own questions are asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from miniatures import GOOD, SCRATCHED, anomaly_r1, expert_ad, mmad
from small_run import SMALL

from iad_r1 import data
from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.judge import mmad as judge_mmad
from iad_r1.judge.predictions import append, read_predictions
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.loops import evaluate, lengths, sft
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import corpus
from iad_r1.loops.results import result_of
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Completion, StopReason


def small(*overrides: str) -> Config:
    return compose.compose([*(o for o in SMALL if not o.startswith("data.")), *overrides])


@pytest.fixture
def context(tmp_path):
    root = expert_ad(tmp_path / "set")
    chosen = ["data=expert_ad", f"data.root={root}", "stage.tasks=[sft,grpo]"]
    config = small(*chosen, "sft.one_shot_share=0", "rollout.max_tokens=32")
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


def test_the_likeliest_letter_answers_where_that_is_asked_for(context, tmp_path):
    """Its log-prob is that of a plain forward after the prompt, among the question's options."""
    config = small("stage=evaluate", "init=x", "benchmark=mmad", "evaluate.choices=logprob",
                   f"benchmark.mmad.root={mmad(tmp_path / 'mmad')}")  # fmt: skip
    samples = data.for_run(config).test["mmad_VisA"]
    asking = evaluate.open_asking(config, context.backbone)
    found = [answer for batch in asking.answers(samples, "mmad_VisA", 1) for answer in batch]
    for answer, sample in zip(found, samples, strict=True):
        assert answer.letters is not None and sample.question.options is not None
        assert list(answer.letters) == sorted(sample.question.options)
        assert sum(answer.letters.values()) == pytest.approx(1)
        assert answer.letters[answer.answer] == max(answer.letters.values())
        assert answer.released_answer == answer.answer
    assert len({len(answer.letters or ()) for answer in found}) > 1  # two options, and more
    by_hand = {
        letter: _logprob(context.backbone, asking.prompter.encode(samples[0], 1), letter)
        for letter in samples[0].question.answers
    }
    shares = torch.tensor(list(by_hand.values())).softmax(0).tolist()
    assert found[0].letters == pytest.approx(dict(zip(by_hand, shares, strict=True)), abs=1e-5)
    assert judge_mmad.table(found, 0)["choices"] == "logprob"
    path = tmp_path / "answers.jsonl"
    append(path, found)
    assert list(read_predictions(path).values()) == found


def _logprob(backbone: Backbone, prompt: Prompt, text: str) -> float:
    """Of a text after a prompt, in a forward of its own."""
    tokens = backbone.encode_target(text).tokens[:-1]
    after = torch.tensor([tokens])
    inputs = {**prompt.inputs, "input_ids": torch.cat([prompt.inputs["input_ids"], after], 1)}
    for name, filler in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(after, filler)], 1)
    with torch.no_grad():
        logits = backbone.model(**inputs).logits[0, -len(tokens) - 1 : -1]
    logits[:, list(backbone.placeholders)] = -torch.inf  # which are never said
    return float(logits.log_softmax(1).gather(1, after.T).sum())


def test_a_letter_is_read_where_the_prompt_has_it_written(context, tmp_path):
    """In tags if the prompt asks for them: an answer that opens none is invalid, and its text is
    not looked at."""
    config = small("stage=evaluate", "init=x", "benchmark=mmad", "evaluate.choices=logprob",
                   f"benchmark.mmad.root={mmad(tmp_path / 'mmad')}")  # fmt: skip
    samples = data.for_run(config).test["mmad_VisA"][:2]
    asking = evaluate.open_asking(config, context.backbone)
    direct = asking._choice(samples)
    assert direct is not None and direct.after == ""
    tagged = [replace(s, question=replace(s.question, prompt="anomaly_r1_train")) for s in samples]
    choice = asking._choice(tagged)
    assert choice is not None and choice.after == "<answer>"
    prompt = asking.prompter.encode(samples[0], 0)
    said = Completion("The answer is B", (1,), (0.0,), StopReason.STOP)
    reasoned = replace(said, text="<think>It is B.</think><answer>A</answer>")
    letters = asking._letters([(tagged[0], prompt, said), (tagged[0], prompt, reasoned)], choice)
    assert letters[0] == {} and sum(letters[1].values()) == pytest.approx(1)
    row = evaluate.graded(asking.grader, tagged[0], said, "s", 0, None, letters=letters[0])
    assert (row.answer, row.letters) == ("invalid", {})
    with pytest.raises(DataError, match=r"mixes questions .* Use evaluate\.choices=text"):
        asking._choice([samples[0], tagged[1]])


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
