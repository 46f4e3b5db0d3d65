"""SC-GRPO and evaluation with `rollout=vllm`, in this process, on a tiny model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iad_r1 import compose, data
from iad_r1.backbones import tiny
from iad_r1.backbones.backbone import Backbone
from iad_r1.grid import as_grid
from iad_r1.run_folder import RunFolder
from iad_r1.stages import evaluate, grpo
from iad_r1.stages.context import Context
from iad_r1.stages.pipeline import corpus
from iad_r1.tracking import Tracker

pytestmark = pytest.mark.vllm
SETTINGS = [
    "rollout=vllm",
    "rollout.kv_cache_gib=0.125",
    "rollout.max_model_len=512",
    "rollout.max_num_seqs=16",
    "rollout.eager=true",
    "rollout.max_tokens=8",
    "rollout.parity.every=2",
    "rollout.parity.probes=2",
    "rollout.parity.tokens=4",
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
    "grpo.degenerate_groups=keep",
    "engine.ranks=1",
    "tracking=none",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A run after three steps of SC-GRPO through vLLM."""
    config = compose.compose(SETTINGS)
    folder = RunFolder.create(tmp_path_factory.mktemp("run"), config.name)
    dataset = data.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
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


def test_the_gate_was_passed_at_the_first_step_and_every_second_one(trained):
    with (trained.folder.path / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 2]
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
