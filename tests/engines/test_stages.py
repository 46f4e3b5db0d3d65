"""SC-GRPO and evaluation with `rollout=vllm`, in this process, on a tiny model."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm_cases

from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.errors import TrainingError
from iad_r1.grid import as_grid
from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, grpo
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import corpus
from iad_r1.rollouts.colocate.sampler import VllmSampler
from iad_r1.store import checkpoints
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.tracking import Tracker

pytestmark = pytest.mark.vllm
SETTINGS = [
    *vllm_cases.SMALL,
    "data.sizes.sft=8",
    "data.sizes.rl=8",
    "data.sizes.validation=6",
    "data.sizes.test=6",
    "evaluate.max_tokens=8",
    "evaluate.batch_size=2",
    "evaluate.shots=[0]",
    "grpo.prompts_per_step=2",
    "grpo.group_size=2",
    "grpo.steps=3",
    "grpo.save_every=1",
    "grpo.degenerate_groups=keep",
    "engine.ranks=1",
    "tracking=none",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A run after three steps of SC-GRPO through vLLM."""
    config = compose.compose(SETTINGS)
    folder = RunFolder.create(tmp_path_factory.mktemp("run"), config.name)
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    path = tiny.build(folder.checkpoint("base"), corpus(config, dataset), 400, 9216, seed=0)
    with Tracker(config.tracking, folder.path, config.model_dump()) as tracker:
        context = Context(config, folder, tracker, dataset, Backbone.load(path), "base")
        grpo.train(context)
        yield context


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sampler_and_trainer_agree_at_every_step(trained):
    rows = lines(trained.folder.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["sampler_gap"] < 1e-4 for row in rows)


def test_the_gate_was_passed_at_the_first_two_steps_and_every_second_one(trained):
    with (trained.folder.path / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    assert all(float(row["gap"]) < 1e-4 < float(row["shown"]) for row in rows)
    assert all(int(row["weights"]) > 20 for row in rows)


def test_evaluation_streams_and_goes_on_where_it_was_stopped(
    trained: Context, monkeypatch: pytest.MonkeyPatch
):
    """It is stopped after two answers; the second run asks for the others alone."""
    written: Callable[..., None] = evaluate.append

    def stops(path: Path, answers: Any) -> None:
        written(path, answers)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "append", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(trained)
    files = sorted((trained.folder.path / "predictions").iterdir())
    before = lines(files[0])
    assert len(files) == 1 and len(before) == 2
    monkeypatch.setattr(evaluate, "append", written)
    rows = evaluate.run(trained)
    after = lines(files[0])
    assert after[:2] == before
    assert [row["n"] for row in rows] == [6] * len(rows)
    assert len({line["id"] for line in after}) == len(after) == 6


# ------------------------------------------------------------------- an engine that fails in a run


def out_of_memory(engine: VllmSampler, patch: pytest.MonkeyPatch) -> None:
    def dies() -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    patch.setattr(engine.llm.llm_engine, "step", dies)


def hanging(engine: VllmSampler, patch: pytest.MonkeyPatch) -> None:
    impatient = engine.settings.model_copy(update={"patience": 0.2})
    patch.setattr(engine, "settings", impatient)
    patch.setattr(engine.llm.llm_engine, "step", lambda: time.sleep(30))


def dead(engine: VllmSampler, patch: pytest.MonkeyPatch) -> None:
    def gone(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("EngineCore encountered an issue")

    patch.setattr(engine.llm, "collective_rpc", gone)


FAILURES = {
    out_of_memory: r"failed while sampling: .*Tried to allocate 20\.00 GiB.*Checkpoints are intact",
    hanging: r"did not answer for 0\.2 s\. Checkpoints are intact",
    dead: "could not take the weights: .*EngineCore encountered an issue",
}
SAME = ("loss", "grad_norm", "reward", "kl", "length_mean", "sampler_gap_mean")


@pytest.fixture
def again(trained: Context, tmp_path: Path) -> Iterator[tuple[Context, dict[str, torch.Tensor]]]:
    """The same run from its beginning in a folder of its own, and the weights it should end with;
    afterwards the model has those."""
    weights = {name: value.clone() for name, value in trained.model.state_dict().items()}
    trained.backbone.read(trained.folder.checkpoint("base"))
    folder = RunFolder.create(tmp_path, trained.config.name)
    with Tracker(trained.config.tracking, folder.path, trained.config.model_dump()) as tracker:
        begun = (trained.config, folder, tracker, trained.dataset, trained.backbone, "base")
        yield Context(*begun), weights
    trained.model.load_state_dict(weights)


@pytest.mark.parametrize("fail", FAILURES)
def test_a_failing_engine_ends_the_run_in_its_own_words_and_the_run_goes_on_from_its_checkpoint(
    trained: Context, again: tuple[Context, dict[str, torch.Tensor]], fail: Callable[..., None]
):
    """Going on, it samples what it would have sampled, and ends with the same weights."""
    (context, expected), synchronise = again, Collector.synchronise

    def failing(self: Any, step: int, clock: Any) -> None:
        if step == 2:
            fail(self.sampler, patch)
        synchronise(self, step, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collector, "synchronise", failing)
        with pytest.raises(TrainingError, match=FAILURES[fail]):
            grpo.train(context)
    assert checkpoints.unfinished(context.folder.path / "checkpoints", "grpo")[-1].step == 2
    context.backbone.read(trained.folder.checkpoint("base"))  # as a new process would begin
    grpo.train(context)
    rows = lines(context.folder.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for ours, theirs in zip(rows, lines(trained.folder.path / "metrics.jsonl"), strict=True):
        assert {k: ours[k] for k in SAME} == pytest.approx({k: theirs[k] for k in SAME}, rel=1e-5)
    torch.testing.assert_close(dict(context.model.state_dict()), expected, rtol=0, atol=1e-7)
