"""A step of SC-GRPO is the same step however many ranks take it, with every option switched on."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import forks
import pytest
import torch
from small_run import SMALL

from iad_r1 import data
from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.learn.context import Context
from iad_r1.loops import grpo
from iad_r1.loops.collect import Collector
from iad_r1.processes import distributed
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Score

OPTIONS = [
    "grpo.degenerate_groups=resample",
    "grpo.resample_limit=2",
    "grpo.group_size=2",  # two completions often earn the same: there is something to draw anew
    "grpo.minibatches=2",
    "grpo.updates_per_batch=2",
    "grpo.reference_refresh=1",
    "grpo.importance.level=token",
    "grpo.vision_lr_scale=0",
    "grpo.token_budget=200",
    "grpo.learning_rate=1e-5",
    "rollout.top_p=0.9",
    "engine.device=cpu",
]
SAME = (
    "reward", "degenerate_groups", "resampled_groups", "degenerate_left", "loss", "kl",
    "ratio_min", "ratio_max", "entropy", "grad_norm", "learning_rate", "importance_mean",
    "importance_min", "sampler_gap_max", "advantage_std", "length_mean", "clip_fraction_low",
)  # fmt: skip


def take_steps(rank: int, ranks: int, port: int, base: Path, options: list[str], out: Path) -> None:
    """What one rank does, in a process of its own; rank 0 keeps what came of it."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, ranks, "127.0.0.1", port)
    if ranks > 1:  # as torchrun says it to the processes it starts
        os.environ["TORCHELASTIC_RUN_ID"] = "test"
        os.environ.update(zip(names, map(str, values), strict=True))
    config = compose.compose(options)
    dataset = data.for_run(config)
    lines: list[dict[str, float]] = []
    with distributed.joined(config.engine):
        context = Context(config, RunFolder(out), None, dataset, Backbone.load(base), "base")
        log = mock.patch.object(context, "log", lambda _, __, values: lines.append(dict(values)))
        with log, mock.patch.object(Collector, "score", by_tokens):
            grpo.train(context)
        if distributed.is_main():
            moved = torch.cat([p.detach().flatten() for p in context.model.parameters()])
            torch.save({"lines": lines, "weights": moved}, out / "result.pt")


def by_tokens(_collector: Collector, _samples: Any, groups: Any) -> list[list[Score]]:
    return [[Score(float(sum(c.tokens) % 2), {"answer": 0.0}) for c in group] for group in groups]


def trained(folder: Path, base: Path, ranks: int) -> dict:
    out = folder / f"ranks{ranks}"
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*SMALL, *OPTIONS, f"engine.ranks={ranks}"]
    processes = [
        forks.start(take_steps, rank, ranks, port, base, options, out) for rank in range(ranks)
    ]
    for process in processes:
        process.join(timeout=250)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * ranks
    return torch.load(out / "result.pt", weights_only=True)


@pytest.mark.slow
def test_one_two_and_three_ranks_take_the_same_steps(tmp_path, make_context):
    base = make_context().folder.checkpoint("base")
    alone = trained(tmp_path, base, 1)
    assert len(alone["lines"]) == 2
    assert sum(line["resampled_groups"] for line in alone["lines"]) > 0
    assert any(line["degenerate_left"] < line["degenerate_groups"] for line in alone["lines"])
    assert all(line["grad_norm"] > 0 for line in alone["lines"])
    for ranks in (2, 3):  # 3 ranks share 4 groups unevenly
        found = trained(tmp_path, base, ranks)
        for line, expected in zip(found["lines"], alone["lines"], strict=True):
            assert {name: line[name] for name in SAME} == pytest.approx(
                {name: expected[name] for name in SAME}, rel=1e-3, abs=1e-6
            ), ranks
        torch.testing.assert_close(found["weights"], alone["weights"], atol=1e-6, rtol=1e-4)
