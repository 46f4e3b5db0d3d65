"""vLLM alone, with weights from disk: it answers and weighs as transformers does with the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm_cases
from miniatures import mmad
from vllm_cases import prompts

from iad_r1 import data
from iad_r1.backbones import tiny, twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.judge.predictions import read_predictions
from iad_r1.loops import evaluate
from iad_r1.loops.inspector import Inspector
from iad_r1.loops.opening import corpus, open_backbone
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.parity import compare_inputs
from iad_r1.rollouts.sampling import Choice, Sampling
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import find_start
from iad_r1.types import Completion, Prediction

pytestmark = pytest.mark.vllm
LIMIT = 1e-4  # of a probability, float32
TOKENS = 10
SMALL = [
    "data.sizes.sft=4",
    "data.sizes.rl=4",
    "data.sizes.validation=4",
    "data.sizes.test=6",
    "evaluate.max_tokens=8",
    "evaluate.batch_size=2",
    "evaluate.shots=[0,1]",
    "evaluate.splits=[test]",
    "tracking=none",
]
ENGINE = vllm_cases.SMALL


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_onevision"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engines: Any
) -> tuple[Backbone, Any]:
    """transformers with the weights, and an engine that has read them by itself."""
    folder = twins.build_twin(request.param, tmp_path_factory.mktemp("alone") / "twin", seed=1)
    bare = Backbone.load(folder, weights=False)
    assert all(weight.is_meta for weight in bare.model.parameters())
    engine = engines(bare)
    engine.sync()
    return Backbone.load(folder), engine


def greedy(sampler: Any, backbone: Backbone, choice: Choice | None = None) -> list[Completion]:
    asked = prompts(backbone)
    sampling = Sampling(1, TOKENS, temperature=0.0, choice=choice)
    return [group[0] for group in sampler.generate(asked, sampling, [()] * len(asked))]


def agree(both: tuple[Backbone, Any], drawn: list[Completion], choice: Choice) -> None:
    """The probabilities of the first of two words are those of the teacher-forced forward."""
    backbone, _ = both
    told = evaluate.p_yes(backbone, prompts(backbone), drawn, choice)
    assert None not in told
    assert [one.choice[0] for one in drawn if one.choice] == pytest.approx(told, abs=LIMIT)


def test_prompts_have_the_same_tokens_and_vllm_prepares_the_same_pictures(both):
    backbone, engine = both
    for ours, bare in zip(prompts(backbone), prompts(engine.backbone), strict=True):
        assert set(bare.inputs) == {"input_ids"}
        assert torch.equal(bare.inputs["input_ids"], ours.inputs["input_ids"])
        compare_inputs(engine, ours)


def test_it_says_what_transformers_says(both):
    backbone, engine = both
    ours, theirs = greedy(HfSampler(backbone, 4), backbone), greedy(engine, engine.backbone)
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]


def test_an_answer_does_not_depend_on_what_else_is_asked(both):
    """Its tokens; log-probs are the same up to rounding, not bit for bit."""
    _, engine = both
    asked = prompts(engine.backbone) * 3
    sampling = Sampling(1, TOKENS, temperature=0.0, choice=Choice("", ("a", "o")))
    together = engine.generate(asked, sampling, [()] * len(asked))
    for number, [one] in enumerate(together):
        [[alone]] = engine.generate(asked[number : number + 1], sampling, [()])
        assert alone.tokens == one.tokens
        assert alone.choice == pytest.approx(one.choice, abs=LIMIT)


def spelled(backbone: Backbone, drawn: Completion) -> str:
    """The longest beginning of a completion that the tokenizer reads as it was drawn."""
    for count in range(len(drawn.tokens) - 1, 0, -1):
        text = backbone.decode(drawn.tokens[:count])
        read = Choice(text, ("a", "o")).tokens(backbone, text)
        if read == (drawn.tokens[:count], [(one,) for one in ends(backbone)]):
            return text
    raise AssertionError(f"no beginning of {drawn.text!r} is read as it was drawn")


def ends(backbone: Backbone) -> list[int]:
    return [backbone.encode_target(word).tokens[0] for word in ("a", "o")]


def test_words_of_one_token_are_weighed_while_it_answers(both):
    """No request is made for them."""
    backbone, engine = both
    for number, one in enumerate(greedy(engine, engine.backbone)):
        choice = Choice(spelled(backbone, one), ("a", "o"))
        before = engine._requests
        drawn = greedy(engine, engine.backbone, choice)[number]
        assert engine._requests == before + 2
        told = evaluate.p_yes(backbone, [prompts(backbone)[number]], [drawn], choice)
        assert drawn.choice is not None
        assert drawn.choice[0] == pytest.approx(told[0], abs=LIMIT)
        assert sum(drawn.choice) == pytest.approx(1)


def test_words_of_several_tokens_are_asked_for_after_what_was_said(both):
    backbone, engine = both
    choice = Choice("<answer>", ("Yesterday", "No doubt"))
    _, words = choice.tokens(backbone, "<answer>") or ((), [])
    assert min(map(len, words)) > 1
    said = [
        replace(one, text=f"{one.text} <answer>No</answer>") for one in greedy(engine, backbone)
    ]
    asked = prompts(engine.backbone)
    sampling = Sampling(1, TOKENS, temperature=0.0, choice=choice)
    weighed = [engine.weighed(p, one, [], sampling) for p, one in zip(asked, said, strict=True)]
    agree(both, [replace(one, choice=c) for one, c in zip(said, weighed, strict=True)], choice)
    assert engine.weighed(asked[0], replace(said[0], text="no answer"), [], sampling) is None


# ------------------------------------------------------------------------------- whole evaluations


@pytest.fixture(scope="module")
def run_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with tiny random weights, as if they were fine-tuned."""
    folder = RunFolder.create(tmp_path_factory.mktemp("outputs"), "before")
    config = compose.compose(SMALL)
    folder.write_json("config.json", config.model_dump(mode="json"))
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(folder.checkpoint("sft"), corpus(config, dataset), 400, 9216, seed=0)
    return folder.path


def answers(run_before: Path, *typed: str) -> list[Prediction]:
    """What the weights of the run say of the pictures, in this process."""
    config = compose.compose([*SMALL, "stage=evaluate", f"init={run_before}", *typed])
    start = find_start(run_before)
    backbone = open_backbone(config, start.run, start, lambda: iter(()))
    assert (backbone.folder is not None) is config.engine_alone
    dataset = data.for_run(config)
    asking = evaluate.open_asking(config, backbone)
    return [
        one
        for split, samples in evaluate.splits(config, dataset).items()
        for shots in config.evaluate.shots
        for batch in asking.answers(samples, split, shots)
        for one in batch
    ]


def same(ours: list[Prediction], theirs: list[Prediction]) -> None:
    """But for the order, which is that in which they are finished, and rounding of P(yes)."""
    first, second = ({(p.id, p.shots): p for p in found} for found in (ours, theirs))
    assert first.keys() == second.keys() and len(first) == len(ours) == len(theirs) > 4
    for key, one in first.items():
        assert replace(one, p_yes=None) == replace(second[key], p_yes=None)
        assert one.p_yes == pytest.approx(second[key].p_yes, abs=LIMIT)


def test_predictions_are_those_of_transformers(run_before, engines, monkeypatch):
    """P(yes) is weighed where they begin: random weights open no answer."""
    monkeypatch.setattr(evaluate, "YES_OR_NO", Choice("", ("Yes", "No")))
    ours = answers(run_before, *ENGINE)
    assert all(one.p_yes is not None for one in ours)
    same(ours, answers(run_before, "rollout=hf"))


def test_letters_of_options_are_weighed_as_by_transformers(run_before, engines, tmp_path):
    asked = ["benchmark=mmad", f"benchmark.mmad.root={mmad(tmp_path)}", "evaluate.choices=logprob",
             "evaluate.shots=[0]", "evaluate.limit=6", "evaluate.max_tokens=4"]  # fmt: skip
    ours, theirs = answers(run_before, *asked, *ENGINE), answers(run_before, *asked, "rollout=hf")
    first, second = ({one.id: one for one in found} for found in (ours, theirs))
    assert first.keys() == second.keys() and len(first) >= 6
    for key, one in first.items():
        assert one.letters and one.letters == pytest.approx(second[key].letters, abs=LIMIT)
        assert one.answer == second[key].answer


def test_an_inspector_says_the_same_through_either(run_before, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "YES_OR_NO", Choice("", ("Yes", "No")))
    pictures = [vllm_cases.picture(number) for number in range(3)]
    found = {}
    for typed in (ENGINE, ["rollout=hf"]):
        config = compose.compose(
            ["stage=predict", f"init={run_before}", "stage.batch_size=2", *typed]
        )
        with Inspector(config) as inspector:
            said = [*inspector.inspect_all(pictures), inspector.inspect(pictures[0], pictures[1:2])]
        found[config.engine_alone] = said
    assert set(found) == {True, False}
    for ours, theirs in zip(found[True], found[False], strict=True):
        assert (ours.completion, ours.verdict) == (theirs.completion, theirs.verdict)
        assert ours.p_yes == pytest.approx(theirs.p_yes, abs=LIMIT)


def test_two_engines_share_the_pictures_of_a_run(repository, run_before, tmp_path):
    typed = [*SMALL, *ENGINE, "stage=evaluate", f"init={run_before}", "engine.ranks=2"]
    command = [sys.executable, str(repository / "run.py"), *typed]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    [folder] = (tmp_path / "outputs").glob("*/*-*")
    files = sorted((folder / "predictions").iterdir())
    found = [one for file in files for one in read_predictions(file).values()]
    same(found, answers(run_before, "rollout=hf"))
    assert "packing" not in json.loads((folder / "manifest.json").read_text())  # nothing can train
