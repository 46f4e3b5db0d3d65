"""Ranks: shares add up to the whole, gradients are summed, and a dead rank ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from iad_r1 import distributed

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
import torch
from torch import nn
from iad_r1 import distributed as d

folder, mode = Path(sys.argv[1]), sys.argv[2]
again = [sys.executable, __file__, str(folder), mode]
d._start = lambda folder, number, count: subprocess.Popen(
    again, env={**os.environ, d.RANK: str(number)}
)
if mode == "absent" and os.environ.get(d.RANK) == "1":
    raise SystemExit("rank 1 never came")
with d.ranks(3, folder):
    if mode == "die" and d.rank() == 2:
        raise SystemExit("rank 2 gives up")
    items = list(range(7))
    mine = d.share(items)
    assert mine == items[d.rank()::3]
    assert d.gather([i * i for i in mine]) == [i * i for i in items]
    assert d.everyone(d.rank()) == [0, 1, 2]
    assert d.total(d.rank() + 0.5) == 4.5
    model = nn.Linear(2, 1)
    if d.rank() != 1:  # a rank with nothing to learn from contributes zeros
        model.weight.grad = torch.full((1, 2), float(d.rank() + 1))
        model.bias.grad = torch.ones(1)
    d.sum_gradients(model)
    assert model.weight.grad.tolist() == [[4.0, 4.0]] and model.bias.grad.tolist() == [2.0]
    d.sum_gradients(idle := nn.Linear(1, 1))
    assert idle.weight.grad is None, "what nobody learned from stays out of the update"
    if d.is_main():
        (folder / "done").write_text("ok")
"""


def program(tmp_path: Path, mode: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    root = str(Path(distributed.__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop(distributed.RANK, None)
    return subprocess.run(
        [sys.executable, str(file), str(tmp_path), mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_three_ranks_share_gather_and_sum(tmp_path):
    done = program(tmp_path, "work")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "ok"
    assert not (tmp_path / ".ranks").exists()


def test_a_rank_that_dies_ends_the_others_and_says_why(tmp_path):
    done = program(tmp_path, "die")
    assert done.returncode != 0
    assert "rank 2 gives up" in done.stderr
    assert "failed with rank" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "done").exists()


def test_a_rank_that_never_comes_is_not_waited_for(tmp_path):
    done = program(tmp_path, "absent")
    assert done.returncode != 0 and "rank 1 never came" in done.stderr
    assert "rank 1 ended at its start" in done.stderr


@pytest.mark.parametrize("items", [[], [1], list(range(5))])
def test_without_ranks_everything_is_the_identity(items):
    assert distributed.share(items) == items == distributed.gather(items)
    assert distributed.total(2.5) == 2.5 and distributed.is_main()
    model = nn.Linear(1, 1)
    model.weight.grad = torch.ones(1, 1)
    distributed.sum_gradients(model)
    assert model.weight.grad.item() == 1.0 and model.bias.grad is None
