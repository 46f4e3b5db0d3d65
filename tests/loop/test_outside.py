"""An outside model is judged as one of ours is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import Service, body, served
from sklearn.metrics import roc_auc_score

from iad_r1.chat.client import ServiceError
from iad_r1.command.compose import compose
from iad_r1.errors import ConfigError
from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import pipeline
from iad_r1.stages import find
from iad_r1.store.run_folder import RunFolder

YES = (
    "<think>A dark line.</think><location>top left</location><type>scratch</type>"
    "<answer>Yes</answer>"
)


@pytest.fixture
def service() -> Iterator[Service]:
    with served() as made:
        made.answer = lambda n, asked: (200, body(YES))
        yield made


@pytest.fixture
def evaluate(service: Service, tmp_path: Path):
    """Runs stage=evaluate on six drawn pictures of each split; again in the same folder."""
    folder = RunFolder.create(tmp_path / "outputs", "outside")

    def run(*more: str) -> RunFolder:
        config = compose([
            "stage=evaluate", "backbone=api", "backbone.model=m", "tracking=none",
            f"backbone.base_url={service.url}", "backbone.retries=0",
            "stage.tasks=[evaluate]", "data.sizes.test=6", "data.sizes.sft=8", "data.sizes.rl=4",
            *more,
        ])  # fmt: skip
        pipeline.run(config, folder)
        return folder

    return run


def rows(folder: RunFolder, shots: int = 0) -> list[Any]:
    files = sorted((folder.path / "predictions").glob(f"*.{shots}shot.jsonl"))
    return [row for file in files for row in read_predictions(file).values()]


def test_its_answers_are_asked_with_pictures_graded_and_scored(evaluate, service):
    folder = evaluate("evaluate.shots=[0,1]", "backbone.dollars_in=1", "backbone.dollars_out=1")
    assert len(rows(folder)) == len(rows(folder, 1)) == 12
    assert {row.answer for row in rows(folder)} == {"yes"}
    kinds = [[part["type"] for part in asked["messages"][-1]["content"]] for asked in service.asked]
    assert {kind.count("image_url") for kind in kinds} == {1, 2}
    assert (folder.outputs / "replies.sqlite").is_file()  # for all runs
    summary = folder.summary()
    assert all(row["balanced_accuracy"] == 50.0 for row in summary["results"])
    assert summary["asked"]["replies"] + summary["asked"]["kept"] == 24 + 0
    assert summary["asked"]["dollars"] == pytest.approx(summary["asked"]["replies"] * 1010 / 1e6)


def test_a_refusal_is_an_invalid_answer_whatever_its_words_are(evaluate, service):
    service.answer = lambda n, asked: (200, body(None, refusal="No, I cannot judge this."))
    folder = evaluate()
    assert {(row.answer, row.stop) for row in rows(folder)} == {("invalid", "refused")}
    assert folder.summary()["asked"]["refused"] == 12


def test_votes_are_a_score_and_a_run_that_failed_between_two_of_them_asks_none_twice(
    evaluate, service
):
    votes = [("Yes", "Yes"), ("No", "Yes"), ("Yes", "No"), ("No", "No")]
    given: dict[str, list[str]] = {}

    def answer(n: int, asked: dict[str, Any]) -> tuple[int, bytes]:
        if n == 5:
            return 500, b""
        said = given.setdefault(picture := json.dumps(asked["messages"]), [])
        said.append(votes[list(given).index(picture) * 3 % 4][len(said)])
        return 200, body(f"<think>a</think><answer>{said[-1]}</answer>")

    service.answer = answer
    asked = ["evaluate.samples=2", "evaluate.temperature=0.7", "backbone.concurrency=1"]
    with pytest.raises(ServiceError):
        evaluate(*asked)
    folder = evaluate(*asked)
    assert len(service.asked) == 25 and {one["temperature"] for one in service.asked} == {0.7}
    assert sorted(row.votes for row in rows(folder)) == sorted(
        tuple(map(str.lower, said)) for said in given.values()
    )
    assert {row.votes for row in rows(folder)} == {(a.lower(), b.lower()) for a, b in votes}
    assert len({row.id for row in rows(folder)}) == 12
    assert all(row.answer == row.votes[0] for row in rows(folder))  # in a tie, too
    for found in folder.summary()["results"]:
        mine = [row for row in rows(folder) if row.split == found["split"]]
        golds = [row.gold_answer == "yes" for row in mine]
        shares = [row.votes.count("yes") / 2 for row in mine]
        assert found["votes"]["auroc"] == pytest.approx(100 * roc_auc_score(golds, shares))
        assert found["votes"]["samples"] == 2 and found["auroc"] is None
    assert folder.summary()["asked"] | {"retries": 0} == {
        "replies": 24, "kept": 0, "retries": 0, "refused": 0, "tokens_in": 24_000,
        "tokens_out": 240, "dollars": 0.0,
    }  # fmt: skip


def test_a_budget_is_one_of_a_run_however_often_it_goes_on(evaluate, service):
    asked = ["backbone.concurrency=1", "backbone.dollars_in=1", "backbone.dollars_out=1"]
    for _ in range(2):
        with pytest.raises(ServiceError, match=r"the budget of 0\.002 dollars is spent"):
            evaluate(*asked, "backbone.budget=0.002")
        assert len(service.asked) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["stage=sft"], "choose another backbone"),
        (["stage=predict"], r"only asked about test pictures.*init=<run or hub id>"),
        (["stage=app"], r"only asked about test pictures.*init=<run or hub id>"),
        (["init=somewhere"], "no weights here"),
        (["location_format=box"], "location_format=words"),
        (["engine.ranks=2"], "backbone.concurrency"),
        (["backbone.budget=1.0"], "needs the prices"),
        (["evaluate.max_pixels=9216"], "evaluate.max_size"),
        (["evaluate.choices=logprob"], "evaluate.choices=text"),
        (["backbone.key=sk-123-abc"], "backbone.key"),
    ],
)
def test_settings_that_cannot_be_are_refused(more, said):
    with pytest.raises(ConfigError, match=said):
        compose(["stage=evaluate", "backbone=api", "backbone.model=m", *more])


def test_a_missing_key_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = compose(["stage=evaluate", "backbone=api", "backbone.model=m"])
    with pytest.raises(ConfigError, match="export OPENAI_API_KEY"):
        find("evaluate").check_weights(config, tmp_path)
