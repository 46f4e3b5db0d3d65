"""`teacher=self`: of what a model says about a picture, the first answer that is right is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_expert_ad import build, made, photographs
from test_expert_texts import RULES, asked, facts

from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.expert.teachers import Asked, Draft, Rejection, find
from iad_r1.loops import expert_ad, inspector
from iad_r1.rollouts.sampling import Sampling
from iad_r1.store.run_folder import write_json
from iad_r1.types import Completion, Sample, StopReason

teacher = find("self")
SETTINGS = teacher.Settings(name="self", samples=3, temperature=0.9)
LOOKED = "I study the brass nut piece by piece, and compare it with a sound part of this kind. "
DAMAGED = (
    f"{LOOKED}At the top left, one region looks different. This is a crack, so it is defective."
)
SOUND = f"{LOOKED}All areas correspond, and nothing differs anywhere. The part is acceptable."
RIGHT = (
    f"<think>{DAMAGED}</think><location>top left</location><type>crack</type><answer>Yes</answer>"
)
GOOD = f"<think>{SOUND}</think><answer>No</answer>"
ELSEWHERE = RIGHT.replace("top left", "bottom right")
OTHER = RIGHT.replace("<type>crack", "<type>stain")


class Scripted:
    """A sampler that says what it is told of a picture, and remembers what it was asked."""

    def __init__(self, said: Mapping[str, Sequence[str]]) -> None:
        self.said, self.asked = dict(said), list[tuple[str, tuple[int, ...]]]()

    def generate(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[tuple[int, ...]]
    ) -> list[list[Completion]]:
        self.asked += zip(prompts, seeds, strict=True)
        assert (sampling.group_size, sampling.temperature) == (3, 0.9)
        return [[completion(text) for text in self.said[name]] for name in prompts]


def completion(text: str) -> Completion:
    stop = StopReason.STOP if text.endswith("</answer>") else StopReason.LENGTH
    return Completion(text, (1,), (0.0,), stop)


def writes(said: Mapping[str, Sequence[str]], file: Path) -> Any:
    judge = SimpleNamespace(
        prompter=SimpleNamespace(encode=lambda sample, shots: sample.id),
        sampler=Scripted(said),
        settings=SimpleNamespace(batch_size=2, max_tokens=99),
        close=lambda: None,
    )
    return teacher.Self(judge, SETTINGS, RULES, 7, file, {"run": "mine/now", "stage": "sft"})


def pictures(*ids: str) -> Iterator[Sequence[Asked]]:
    """Those called good* are good; others are cracked at the top left."""
    for id in ids:
        found = facts(None) if id.startswith("good") else facts("cracked")
        yield [asked(found, id=id)]


def test_the_first_answer_that_is_right_is_kept_as_it_was_written(tmp_path):
    one = writes({"bad": [ELSEWHERE, RIGHT, OTHER], "good": [GOOD] * 3}, tmp_path / "tries.jsonl")
    assert list(one.write(pictures("bad", "good"))) == [
        [Draft("", DAMAGED, "crack")],
        [Draft("", SOUND, None)],
    ]
    assert one.close() == {"tries": 6, "right": 4, "wrong": {"place": 1, "type": 1}}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (GOOD, "answer"),
        (ELSEWHERE, "place"),
        (OTHER, "type"),
        (RIGHT[:-20], "schema"),  # cut off
        (RIGHT.replace("</think>", ""), "schema"),
        (RIGHT.replace("so it is defective", "and the part is acceptable"), "verdict"),
        (RIGHT.replace("one region", "one highlighted region"), "forbidden word"),
        (RIGHT.replace(LOOKED, ""), "length"),
    ],
)
def test_what_is_wrong_is_counted_by_its_reason_and_never_kept(tmp_path, said, reason):
    one = writes({"bad": [said] * 3}, tmp_path / "tries.jsonl")
    (((kept,),)) = list(one.write(pictures("bad")))
    assert kept == Rejection(reason, f"none of 3 tries is right: {reason} 3")
    assert one.close() == {"tries": 3, "right": 0, "wrong": {reason: 3}}


def test_where_none_is_right_the_reason_is_that_of_most(tmp_path):
    one = writes({"bad": [GOOD, ELSEWHERE, GOOD]}, tmp_path / "tries.jsonl")
    (((kept,),)) = list(one.write(pictures("bad")))
    assert kept == Rejection("answer", "none of 3 tries is right: answer 2, place 1")


def test_pictures_that_nothing_is_wanted_of_are_not_asked_about(tmp_path):
    one = writes({"good": [GOOD] * 3}, tmp_path / "tries.jsonl")
    wanted: list[Sequence[Asked]] = [(), *pictures("good"), ()]
    assert list(one.write(wanted)) == [[], [Draft("", SOUND, None)], []]


def test_a_run_that_goes_on_draws_only_what_is_missing_and_counts_all(tmp_path):
    said = {"bad": [ELSEWHERE, RIGHT, GOOD], "good": [GOOD] * 3, "good2": [GOOD] * 3}
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    first = writes(said, whole)
    kept, counted = list(first.write(pictures(*said))), first.close()
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    torn.write_text(lines[0] + lines[1][:30], encoding="utf-8")
    second = writes(said, torn)
    assert list(second.write(pictures(*said))) == kept
    assert [name for name, _ in second.judge.sampler.asked] == ["good", "good2"]
    assert set(second.judge.sampler.asked) < set(first.judge.sampler.asked)  # of the same seeds
    assert second.close() == counted
    assert torn.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["id"] for line in lines] == [*said]


# --- a whole build -------------------------------------------------------------------------------


def answer(sample: Sample) -> str:
    """What is right about a picture."""
    said, own = sample.solution, f"I study {sample.id}"  # no two texts are the same
    if said.answer == "No":
        return GOOD.replace("I study", own)
    text = DAMAGED.replace("top left", str(said.location)).replace("crack", str(said.type))
    text = text.replace("I study", own)
    return (
        f"<think>{text}</think><location>{said.location}</location><type>{said.type}</type>"
        "<answer>Yes</answer>"
    )


class Knowing(Scripted):
    """Says first what is wrong of every picture, then what is right, but never of `stain`."""

    def __init__(self) -> None:
        super().__init__({})

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, seeds: Sequence[tuple[int, ...]]
    ) -> list[list[Completion]]:
        self.said |= {one.id: ["", GOOD if one.solution.type == "stain" else answer(one), RIGHT]
                      for one in prompts}  # fmt: skip
        return super().generate([one.id for one in prompts], sampling, seeds)


def test_the_lists_hold_what_was_right_and_the_card_counts_the_tries(tmp_path, monkeypatch):
    photos, folder = tmp_path / "photos", run_of(tmp_path, "sft")
    photos.mkdir()
    photographs(photos)
    judge = SimpleNamespace(
        prompter=SimpleNamespace(encode=lambda sample, shots: sample), sampler=Knowing(),
        settings=SimpleNamespace(batch_size=5, max_tokens=99), close=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(inspector, "open_judge", lambda config: judge)
    config = made(
        f"data.root={photos}", "teacher=self", "teacher.samples=3", f"init={folder}",
        "data.near_duplicate_bits=0", "grid=3x3", "stage.alike=1.0", "stage.words=[10,160]",
    )  # fmt: skip
    out = build(config, tmp_path / "built") / expert_ad.DATASET
    kept = [json.loads(line) for line in (out / "items.jsonl").open(encoding="utf-8")]
    assert {row["type"] for row in kept} == {None, "scratch"}
    assert {row["writer"]["run"] for row in kept} == {"mine/2026-01-02_03-04-05"}
    assert all(row["target"] == judge.sampler.said[row["id"]][1] for row in kept)
    left_out = [json.loads(line) for line in (out / "rejected.jsonl").open(encoding="utf-8")]
    stains = [row for row in left_out if row.get("label") == "stain"]
    assert len(stains) > 2 and {row["rejected"][0]["reason"] for row in stains} == {"schema"}
    tries = [json.loads(line) for line in (out.parent / teacher.TRIES).open(encoding="utf-8")]
    right = sum(one["wrong"] is None for row in tries for one in row["tries"])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"Of {3 * len(tries)} tries {right} were right; wrong: schema" in card


# --- settings ------------------------------------------------------------------------------------


def run_of(place: Path, stage: str) -> Path:
    """A folder with the settings of a run and weights of that stage."""
    folder = place / "outputs" / "mine" / "2026-01-02_03-04-05"
    made = compose.compose(["stage=sft", "grid=2x2", "evaluate.max_tokens=160"])
    write_json(folder / "config.json", made.model_dump(mode="json"))
    write_json(folder / "checkpoints" / stage / "config.json", {"model_type": "qwen2_5_vl"})
    return folder


def test_it_asks_as_the_run_was_evaluated(tmp_path):
    folder = run_of(tmp_path, "sft")
    config = compose.compose(["stage=expert_ad", "teacher=self", f"init={folder}"])
    assert (config.grid.rows, config.evaluate.max_tokens) == (2, 160)
    teacher.require(config)
    assert teacher.announce(config) == f"self, 4 tries for each picture by {folder}"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["teacher=self"], "teacher=self needs the model that writes"),
        (["teacher=self", "init=RUN", "stage.arms=true"], "stage.arms=true with teacher=self"),
        (["teacher=self", "init=RUN", "location_format=box"], "this model writes numbers"),
        (["teacher=rules", "init=RUN"], "no model of a run writes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_a_sentence(tmp_path, typed, message):
    folder = str(run_of(tmp_path, "sft"))
    with pytest.raises(ConfigError, match=message):
        compose.compose(["stage=expert_ad", *(text.replace("RUN", folder) for text in typed)])


def test_a_model_that_was_only_pre_trained_is_refused(tmp_path):
    folder = run_of(tmp_path, "pretrain")
    config = compose.compose(["stage=expert_ad", "teacher=self", f"init={folder}"])
    with pytest.raises(ConfigError, match="was only pre-trained and cannot answer"):
        teacher.require(config)
