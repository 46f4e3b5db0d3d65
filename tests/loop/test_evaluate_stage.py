"""Evaluation: what is asked, how, and that it goes on where it stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from iad_r1.grid import Grid
from iad_r1.judge.grade import Grader, grade
from iad_r1.judge.predictions import read_predictions
from iad_r1.judge.rates import summarise
from iad_r1.loops import evaluate
from iad_r1.loops.results import vote_scores
from iad_r1.rewards import vocabulary
from iad_r1.rollouts.prompting import Prompter
from iad_r1.types import Completion, Question, Solution, StopReason


def said(text: str, stop: StopReason = StopReason.STOP) -> Completion:
    return Completion(text, (1, 2), (-0.1, -0.1), stop)


@pytest.fixture
def context(make_context):
    return make_context("evaluate.shots=[0,1]")


def test_answers_are_graded_as_the_settings_say(make_context):
    context = make_context(
        "evaluate.evaluator=mmad_compat", "evaluate.prompt=base_test", "grid=2x2"
    )
    grader = evaluate.open_asking(context.config, context.backbone).grader
    assert grader == Grader(Grid(2, 2), vocabulary("default"), "mmad_compat", "free")


def test_a_picture_can_be_asked_about_without_a_run(context):
    sample = context.dataset.test["seen"][0]
    asking = evaluate.open_asking(context.config, context.backbone)
    [[found]] = asking.answers([sample], split="mine", shots=1)
    assert (found.id, found.split, found.shots) == (sample.id, "mine", 1)


def test_p_yes_is_the_share_of_yes_where_the_answer_is_written(context):
    sample = context.dataset.test["seen"][0]
    prompt = Prompter(context.backbone, context.config.evaluate.prompt).encode(sample)
    text = "<think>ok</think><answer>"
    backbone = context.backbone
    words = [backbone.encode_target(text + word).tokens[:-1] for word in ("Yes", "No")]
    totals = []
    for tokens in words:  # the plain forward, token by token
        ids = torch.cat([prompt.inputs["input_ids"], torch.tensor([tokens])], 1)
        types = torch.zeros_like(ids)
        types[:, : prompt.inputs["input_ids"].shape[1]] = prompt.inputs["mm_token_type_ids"]
        inputs = {**prompt.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            logits = context.model(**{**inputs, "mm_token_type_ids": types}).logits[0]
        start = prompt.inputs["input_ids"].shape[1] - 1
        logprobs = torch.log_softmax(logits[start:-1], -1)
        totals.append(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum().item())
    wanted = 1 / (1 + math.exp(totals[1] - totals[0]))
    drawn = [said(text + "Yes</answer>"), said("no tag at all")]
    found = evaluate.p_yes(backbone, [prompt, prompt], drawn)
    assert found[0] == pytest.approx(wanted, rel=1e-4) and found[1] is None


def test_every_split_is_answered_once_with_every_number_of_shots(context):
    rows = evaluate.run(context)
    assert [(r["split"], r["shots"], r["n"]) for r in rows] == [
        ("seen", 0, 8), ("seen", 1, 8), ("new", 0, 8), ("new", 1, 8),
    ]  # fmt: skip
    one_shot = read_predictions(context.folder.predictions("base", "seen", 1))
    for sample in context.dataset.test["seen"]:
        shown = one_shot[sample.id].references
        assert shown == (sample.references[0].id,) and sample.id not in shown


def test_an_evaluation_that_was_stopped_asks_only_what_is_missing(context, monkeypatch):
    whole = evaluate.run(context)
    path = context.folder.predictions("base", "seen", 0)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
    asked: list[str] = []
    honest = evaluate.Asking.answers

    def counting(self, samples, split, shots):
        asked.extend(sample.id for sample in samples)
        return honest(self, samples, split, shots)

    monkeypatch.setattr(evaluate.Asking, "answers", counting)
    assert evaluate.run(context) == whole
    assert len(asked) == 5


def test_several_answers_are_drawn_alike_whatever_else_is_asked(make_context, monkeypatch):
    typed = ("evaluate.samples=3", "evaluate.temperature=1.5", "evaluate.batch_size=7")
    context = make_context(*typed)
    samples = context.dataset.test["seen"][:3]
    drawn: list[str] = []
    graded = evaluate.graded

    def written(grader, sample, completion, *rest):
        drawn.append(completion.text)
        word = ["Yes", "No", "Yes"][(len(drawn) - 1) % 3]
        return graded(grader, sample, said(f"<think>a</think><answer>{word}</answer>"), *rest)

    monkeypatch.setattr(evaluate, "graded", written)
    asking = evaluate.open_asking(context.config, context.backbone)
    together = [one for batch in asking.answers(samples, "mine", 0) for one in batch]
    assert [one.id for one in together] == [sample.id for sample in samples]
    assert len(drawn) == 9 and len(set(drawn)) == 9
    assert {(one.answer, one.votes) for one in together} == {("yes", ("yes", "no", "yes"))}
    scores = vote_scores(together, 0)
    assert scores is not None and scores["samples"] == 3
    before = drawn.copy()
    list(asking.answers(samples[1:2], "mine", 0))
    assert drawn[9:] == before[3:6]


def test_validation_pictures_are_judged_only_when_asked(make_context):
    context = make_context("evaluate.splits=[validation]", "evaluate.limit=2")
    names = {
        name: len(samples)
        for name, samples in evaluate.splits(context.config, context.dataset).items()
    }
    assert names == {"validation_seen": 2, "validation_new": 2}


OPTIONS = {"A": "A hole", "B": "A scratch", "C": "Nothing"}


def test_a_multiple_choice_is_asked_graded_and_counted(context):
    part = context.dataset.test["seen"][0]
    asked = [
        replace(part, id=f"{part.id}?{letter}", solution=Solution(letter),
                question=Question("What is wrong with the part?", OPTIONS))
        for letter in OPTIONS
    ]  # fmt: skip
    words = Prompter(context.backbone, "mmad").encode(asked[0]).text
    assert "What is wrong with the part? \nA. A hole\nB. A scratch\nC. Nothing\n" in words
    grader = evaluate.open_asking(context.config, context.backbone).grader
    answers = [grade(grader, sample, said("B"), split="seen") for sample in asked]
    found = summarise(answers, 0)
    assert found["accuracy"] == pytest.approx(100 / 3) and found["balanced_accuracy"] is None


def test_a_multiple_choice_has_no_p_yes(context, monkeypatch):
    part = context.dataset.test["seen"][0]
    choice = replace(part, id="choice", solution=Solution("B"), question=Question(None, OPTIONS))
    asking = evaluate.open_asking(context.config, context.backbone)
    prompt = Prompter(context.backbone, "iad_r1_test").encode(part)
    text = said("<answer>B</answer>")
    assert evaluate.p_yes(context.backbone, [prompt], [text])[0] is not None
    assert list(asking._p_yes([(choice, prompt, text), (part, prompt, text)])) == [1]
