"""Evaluation: what is judged, how, and that it goes on where it stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import evaluate
from iad_r1.types import Completion, Solution, StopReason

RIGHT = (
    "<think>At the top left it differs.</think><location>top left</location>"
    "<type>scratch</type><answer>Yes</answer>"
)


def said(text: str, stop: StopReason = StopReason.STOP) -> Completion:
    return Completion(text, (1, 2), (-0.1, -0.1), stop)


@pytest.fixture
def context(make_context):
    return make_context("evaluate.shots=[0,1]")


@pytest.fixture
def anomalous(context):
    sample = next(s for s in context.dataset.test["seen"] if s.solution.answer == "Yes")
    return replace(sample, solution=Solution("Yes", "top left", "scratch"))


def judged(context, sample, text, stop=StopReason.STOP):
    return evaluate.judge(sample, "seen", 0, said(text, stop), 0.7, context.config)


def test_a_right_answer_is_right_in_every_part(context, anomalous):
    found = judged(context, anomalous, RIGHT)
    assert (found.answer, found.location_correct, found.type_correct) == ("yes", True, True)
    assert found.status == "ok" and found.p_yes == 0.7


@pytest.mark.parametrize(
    ("text", "answer", "place", "kind"),
    [
        (RIGHT.replace("top left</loc", "top right</loc"), "yes", False, True),
        (RIGHT.replace("top left</loc", "somewhere</loc"), "yes", False, True),
        (RIGHT.replace("scratch", "hole"), "yes", True, False),
        (RIGHT.replace(">Yes<", ">No<"), "no", True, True),
        (RIGHT + RIGHT, "invalid", False, False),
        ("anomaly detected", "invalid", False, False),
    ],
)
def test_each_part_is_judged_by_itself(context, anomalous, text, answer, place, kind):
    found = judged(context, anomalous, text)
    assert (found.answer, found.location_correct, found.type_correct) == (answer, place, kind)


@pytest.mark.parametrize(
    ("evaluator", "prompt", "answer"),
    [
        ("strict", "base_test_qwen", "yes"),
        ("iadr1_compat", "base_test_qwen", "no"),  # its script finds "no" in "noticeable"
        ("iadr1_compat", "base_test_llava15", "yes"),  # this one looks in lower case
        ("iadr1_compat", "iad_r1_test_qwen", "invalid"),  # and this one in answer tags only
        ("mmad_compat", "iad_r1_test_qwen", "yes"),
    ],
)
def test_answers_are_read_as_the_evaluator_and_the_prompt_say(
    context, anomalous, evaluator, prompt, answer
):
    chosen = context.config.evaluate.model_copy(update={"evaluator": evaluator, "prompt": prompt})
    config = context.config.model_copy(update={"evaluate": chosen})
    text = said("Yes, there is a noticeable scratch.")
    assert evaluate.judge(anomalous, "seen", 0, text, None, config).answer == answer


def test_what_is_not_annotated_is_not_judged(context, anomalous):
    unknown = replace(anomalous, solution=Solution("Yes"))
    assert judged(context, unknown, RIGHT).location_correct is None
    assert judged(context, unknown, RIGHT).type_correct is None
    normal = replace(anomalous, solution=Solution("No"))
    assert judged(context, normal, RIGHT).location_correct is None


def test_an_answer_cut_off_at_the_limit_is_invalid(context, anomalous):
    found = judged(context, anomalous, "<think>At the top", StopReason.LENGTH)
    assert (found.answer, found.status) == ("invalid", "truncated")


def test_p_yes_is_the_share_of_yes_where_the_answer_is_written(context):
    asking = evaluate._Asking(context)
    sample = context.dataset.test["seen"][0]
    prompt = asking.prompter.encode(sample)
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
    found = asking.p_yes([prompt, prompt], drawn)
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
    honest = evaluate._Asking.answers

    def counting(self, samples, split, shots):
        asked.extend(sample.id for sample in samples)
        return honest(self, samples, split, shots)

    monkeypatch.setattr(evaluate._Asking, "answers", counting)
    assert evaluate.run(context) == whole
    assert len(asked) == 5


def test_validation_pictures_are_judged_only_when_asked(make_context):
    context = make_context("evaluate.splits=[validation]", "evaluate.limit=2")
    names = {name: len(samples) for name, samples in evaluate.splits(context).items()}
    assert names == {"validation_seen": 2, "validation_new": 2}
