"""Ranks: shares add up to the whole, gradients are summed, and a dead rank ends the run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forks
import pytest
import torch
from torch import nn

from iad_r1.command import compose, launch
from iad_r1.errors import ConfigError, MismatchError
from iad_r1.objective.losses import LossStats
from iad_r1.processes import distributed
from iad_r1.store.run_folder import RunFolder

PROGRAM = """
import os, sys, time
from pathlib import Path
import torch
from torch import nn
from iad_r1.command import compose
from iad_r1.errors import ConfigError
from iad_r1.processes import distributed as d

mode, folder = sys.argv[1], Path(sys.argv[2])
if mode == "absent" and os.environ["RANK"] == "1":
    raise SystemExit("rank 1 never came")
if mode == "killed" and os.environ["RANK"] == "1":
    os.kill(os.getpid(), 9)
ranks = int(os.environ["WORLD_SIZE"])
with d.joined(compose.compose([f"engine.ranks={ranks}", "engine.device=cpu"]).engine):
    if mode == "die" and d.rank() == 2:
        raise SystemExit("rank 2 gives up")
    items = list(range(7))
    mine = d.share(items)
    assert mine == items[d.rank()::3]
    assert d.everyone(d.rank()) == [0, 1, 2]
    assert d.total(d.rank() + 0.5) == 4.5
    model = nn.Linear(2, 1)
    if d.rank() != 1:  # a rank with nothing to learn from contributes zeros
        model.weight.grad = torch.full((1, 2), float(d.rank() + 1))
        model.bias.grad = torch.ones(1)
    d.BUCKET = 2  # the bias is summed apart
    d.sum_gradients(model.parameters())
    assert model.weight.grad.tolist() == [[4.0, 4.0]] and model.bias.grad.tolist() == [2.0]
    idle = nn.Linear(1, 1)
    d.sum_gradients(idle.parameters())
    assert idle.weight.grad is None, "what nobody learned from stays out of the update"
    d.check_same_folder(folder, patience=60)
    (folder / str(min(d.rank(), 1))).mkdir(exist_ok=True)  # rank 0 has a disk of its own
    try:
        d.check_same_folder(folder / str(min(d.rank(), 1)), patience=0.2)
    except ConfigError as error:
        assert "is not seen on" in str(error)
    else:
        raise SystemExit("nobody noticed")
    if d.is_main():
        assert not list(folder.rglob(".seen-*"))
        (folder / "done").write_text("ok")
"""


def arguments(tmp_path: Path, mode: str, ranks: int) -> list[str]:
    """What torchrun is told so that this many ranks run the program."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM, encoding="utf-8")
    (tmp_path / "config.json").write_text("{}")
    return ["--standalone", f"--nproc-per-node={ranks}", str(file), mode, str(tmp_path)]


@pytest.mark.slow
def test_three_ranks_share_and_sum(tmp_path):
    root = str(Path(distributed.__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "iad_r1.processes.torchrun", *arguments(tmp_path, "work", 3)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "ok"


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory) -> dict[str, tuple[ForkServerProcess, Path]]:
    """Runs in which a rank fails. They are started together: the ranks that wait for one that never
    comes get some seconds."""
    started = {}
    for mode, ranks in (("die", 3), ("absent", 2), ("killed", 2)):
        folder = tmp_path_factory.mktemp(mode)
        told = arguments(folder, mode, ranks)
        started[mode] = (forks.start_torchrun(told, folder, folder / "log.txt"), folder)
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "said"),
    [("die", "rank 2 gives up"), ("absent", "rank 1 never came"), ("killed", "ended by SIGKILL")],
)
def test_a_rank_that_ends_early_ends_the_others_and_is_heard(mode, said, ended_early):
    process, folder = ended_early[mode]
    process.join(timeout=240)
    output = (folder / "log.txt").read_text(encoding="utf-8")
    assert process.exitcode is not None and process.exitcode > 0, output
    assert said in output
    assert "ChildFailedError" not in output, "torchrun's report would bury it"
    assert not (folder / "done").exists()


def test_more_ranks_than_were_started_are_refused():
    with (
        pytest.raises(ConfigError, match="4 processes, but 1 were started"),
        distributed.joined(compose.compose(["engine.hosts=2", "engine.ranks=2"]).engine),
    ):
        pass


def test_torchrun_is_used_where_there_is_something_for_it_to_start(tmp_path):
    def command(*settings: str) -> list[str]:
        return launch.command(compose.compose([*settings]), RunFolder(tmp_path / "run" / "now"))[1:]

    worker = ["-m", "iad_r1.command.worker", str(tmp_path / "run" / "now")]
    assert command("engine.ranks=1") == worker
    assert command("engine.ranks=2", "stage=report", "init=earlier") == worker
    one = ["-m", "iad_r1.processes.torchrun", "--standalone"]
    assert command("engine.ranks=3") == [*one, "--nproc-per-node=3", *worker]
    assert command("engine=zero3", "engine.ranks=1") == [*one, "--nproc-per-node=1", *worker]
    several = command("engine.ranks=8", "engine.hosts=2")
    assert several[-4:] == ["--nproc-per-node=8", *worker]
    assert {"--nnodes=2", "--rdzv-id=now"} <= set(several)  # the same on every host


@pytest.mark.parametrize("items", [[], [1], list(range(5))])
def test_without_ranks_everything_is_the_identity(items):
    assert distributed.share(items) == items
    assert distributed.total(2.5) == 2.5 and distributed.is_main()
    model = nn.Linear(1, 1)
    model.weight.grad = torch.ones(1, 1)
    distributed.sum_gradients(model.parameters())
    assert model.weight.grad.item() == 1.0 and model.bias.grad is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_tensor_on_a_device_crosses_ranks(ranks, monkeypatch):
    """Ranks have a GPU each: what one of them computed there is of no use to another."""
    monkeypatch.setattr(distributed, "world", lambda: ranks)
    sent = []
    monkeypatch.setattr(
        distributed.dist, "all_gather_object", lambda found, item: sent.append(item)
    )
    far = torch.ones((), device="meta")
    for item in (far, [{"loss": far}], LossStats(*[far] * len(fields(LossStats)))):
        with pytest.raises(MismatchError, match="would send the others a tensor on meta"):
            distributed.everyone(item)
    assert not sent
    near = LossStats(*[torch.ones(())] * len(fields(LossStats))).cpu()
    distributed.everyone([near, "text", 1.0])
