"""SC-GRPO ends with the weights that do best on validation, where it is told to choose."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
from small_run import SMALL, logged, same, stopped, weights

from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.loops import grpo
from iad_r1.loops.choosing import Chooser, balanced
from iad_r1.loops.collect import Collector
from iad_r1.loops.lengths import asked
from iad_r1.loops.overlap import Overlap
from iad_r1.store.manifest import chosen_weights
from iad_r1.types import Score

CHOOSE = ("grpo.choose_on_validation=true", "grpo.save_every=1", "grpo.steps=3")


@pytest.fixture
def rewarded(monkeypatch):
    """A reward that any text can win or lose: untrained models rarely earn the real one."""
    monkeypatch.setattr(
        Collector,
        "score",
        lambda _, __, groups: [[Score(float(sum(c.tokens) % 7)) for c in g] for g in groups],
    )


@pytest.fixture
def judge_as(monkeypatch):
    """`judge_as(context, 1, 3, 2)`: the weights get these scores, one after the other; returns the
    weights that were judged."""

    def plan(context, *scores: float) -> list:
        seen, said = [], iter(scores)

        def judge(self) -> dict[str, float]:
            seen.append(weights(context))
            return {"score": next(said), "standard_error": 1.0}

        monkeypatch.setattr(Chooser, "judge", judge)
        return seen

    return plan


def chosen(context) -> dict:
    return context.folder.read_json("manifest.json")["chosen"]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [((20, 30, 10, 30), 1), ((50, 10, 20, 30), 0)],
)
def test_the_best_weights_are_kept_and_of_equals_the_earliest(
    make_context, rewarded, judge_as, scores, kept
):
    context = make_context(*CHOOSE)
    seen = judge_as(context, *scores)
    grpo.train(context)
    assert not same(seen[0], seen[1]) and not same(seen[2], seen[3])  # every step learns
    assert same(weights(context), seen[kept])
    found = chosen(context)
    assert (found["step"], found["steps"]) == (kept, 3)
    assert [(one["step"], one["score"]) for one in found["candidates"]] == list(enumerate(scores))
    again = copy.copy(context)  # of a run that was killed after its last checkpoint
    again.backbone = Backbone.load(context.folder.checkpoint("base"))
    judge_as(again)  # nothing is judged again
    assert logged(again) == []
    assert same(weights(again), seen[kept])


def test_judging_changes_nothing_of_what_is_learned(make_context, rewarded):
    plain, judging = make_context("grpo.steps=3", "grpo.save_every=1"), make_context(*CHOOSE)
    expected, found = logged(plain), logged(judging)
    for one, other in zip(expected, found, strict=True):
        assert {k: v for k, v in one.items() if k in ("loss", "kl", "reward", "entropy")} == {
            k: v for k, v in other.items() if k in ("loss", "kl", "reward", "entropy")
        }
    last = Backbone.load(judging.folder.path / "checkpoints" / "grpo-step-000003")
    assert same([p.detach() for p in last.model.parameters()], weights(plain))


def test_a_run_that_was_stopped_chooses_among_the_same_weights(make_context, rewarded, judge_as):
    """It is stopped between two candidates: the checkpoint of the stop is none."""
    settings = ("grpo.choose_on_validation=true", "grpo.save_every=2", "grpo.steps=5")
    whole, half = make_context(*settings), make_context(*settings)
    judge_as(whole, 10, 20, 30, 15)
    grpo.train(whole)
    assert [one["step"] for one in chosen(whole)["candidates"]] == [0, 2, 4, 5]

    judge_as(half, 10, 20)
    again = stopped(half, after=2)
    judge_as(again, 30, 15)
    grpo.train(again)
    assert chosen(again) == chosen(whole)
    assert same(weights(again), weights(whole))


def test_a_run_that_draws_ahead_goes_on_from_before_its_first_step(tmp_path):
    """There is no batch in that checkpoint, for none was drawn."""
    collector = Mock(spec=Collector)
    overlap = Overlap(collector, [[]], overlap=1)
    overlap.save(tmp_path)
    overlap.load(tmp_path, step=0)
    assert overlap.next is None
    with pytest.raises(FileNotFoundError):  # later there is one
        Overlap(collector, [[], []], overlap=1).load(tmp_path, step=1)


def test_without_defects_to_validate_with_the_last_weights_stay_and_that_is_said(
    make_context, rewarded, capsys
):
    context = make_context(*CHOOSE)
    good = {
        name: tuple(s for s in samples if s.solution.answer == "No")
        for name, samples in context.dataset.validation.items()
    }
    count = sum(map(len, good.values()))
    context.dataset = replace(context.dataset, validation=good)
    grpo.train(context)
    last = Backbone.load(context.folder.path / "checkpoints" / "grpo-step-000003")
    assert same(weights(context), [p.detach() for p in last.model.parameters()])
    said = (
        "SC-GRPO ended with its last weights: nothing can be chosen by "
        f"{count} validation pictures (0 defective)."
    )
    assert said in capsys.readouterr().out
    assert said == chosen_weights(context.folder.read_json("manifest.json"))
    assert not (context.folder.path / "checkpoints" / "grpo-step-000000").exists()


def test_a_score_is_the_share_of_sampled_answers_that_are_right(make_context, monkeypatch):
    """Of as many answers as SC-GRPO draws, to every validation picture, the same ones each time."""
    context = make_context(*CHOOSE, "grpo.group_size=2")
    collector = Collector(context)
    read: list[str] = []

    def answer(text: str) -> str:
        read.append(text)
        return "yes" if len(read) % 2 else "no"  # of the two answers to a picture one says yes

    monkeypatch.setattr(collector, "read_answer", answer)
    chooser = Chooser(context, collector)
    pictures = [s for part in context.dataset.validation.values() for s in part]
    assert chooser.judge() == {"score": 50.0, "standard_error": 0.0}
    assert len(read) == 2 * len(pictures)
    chooser.judge()
    assert read[: len(read) // 2] == read[len(read) // 2 :]


def test_good_and_defective_pictures_count_alike_and_few_pictures_are_uncertain(make_context):
    samples = make_context().dataset.validation["seen"]
    bad = [s for s in samples if s.solution.answer == "Yes"][:2]
    good = [s for s in samples if s.solution.answer == "No"][:1]
    shares = {bad[0].id: 1.0, bad[1].id: 0.5, good[0].id: 0.25}
    found = balanced(shares, [*bad, *good])
    assert found["score"] == pytest.approx(50.0)  # of 75 and 25
    # the two defective ones lie 0.35 apart (standard deviation), of one good one nothing is known
    assert found["standard_error"] == pytest.approx(100 * math.sqrt(0.125 / 2) / 2)


def test_what_is_asked_to_choose_is_checked_for_length_before_the_first_step(make_context):
    context = make_context(*CHOOSE)
    held = {s.id for part in context.dataset.validation.values() for s in part}
    assert held <= {s.id for s in asked(context.config, context.dataset, "grpo")[0]}
    plain = compose.compose(SMALL)
    assert held.isdisjoint(s.id for s in asked(plain, context.dataset, "grpo")[0])


def test_photographs_are_where_it_is_on_by_default():
    photos = compose.compose(["data=photos", "data.root=somewhere"])
    assert photos.grpo.choose_on_validation
    for other in (["data=synthetic"], ["data=photos", "data.root=x", "backbone=qwen25vl_3b"]):
        assert not compose.compose(other).grpo.choose_on_validation


def test_what_was_kept_is_said_with_what_it_beat_and_how_sure_that_is():
    found = {
        "step": 10,
        "steps": 20,
        "pictures": 50,
        "defective": 24,
        "candidates": [
            {"step": 0, "score": 61.04, "standard_error": 5.0},
            {"step": 10, "score": 66.0, "standard_error": 5.1},
            {"step": 20, "score": 59.0, "standard_error": 5.2},
        ],
    }
    assert chosen_weights({}) is None
    assert chosen_weights({"chosen": found}) == (
        "SC-GRPO kept, of 3 weights, those after 10 of 20 steps: 66.0 % of their sampled answers "
        "to 50 validation pictures (24 defective) are right, both kinds counted alike; 61.0 before "
        "it, 59.0 after the last step. With other pictures such a number would differ by about "
        "5.1 (standard error), and the best of several flatters."
    )
    first = chosen_weights({"chosen": {**found, "step": 0}})
    assert first is not None
    assert "of 3 weights, those before it: 61.0 %" in first and "alike; 59.0 after the" in first
