"""One engine per rank, each fed by ZeRO: the same weights everywhere, the steps of one process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm_cases

from iad_r1.backbones import tiny
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.grid import as_grid
from iad_r1.loops.opening import corpus

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
SMALL = [
    "data.sizes.sft=8",
    "data.sizes.rl=8",
    "data.sizes.validation=4",
    "data.sizes.test=4",
    "grpo.steps=3",
    "grpo.prompts_per_step=5",  # three on one rank, two on the other
    "grpo.group_size=2",
    "grpo.kl_coef=0.1",
    "grpo.learning_rate=1e-3",
    "grpo.degenerate_groups=skip",
    "grpo.token_budget=60",  # one group in a forward
    "engine.device=cpu",
    "tracking=none",
    *vllm_cases.SMALL,
]
TUNINGS = {"full": [], "lora": ["tuning=lora", "tuning.rank=4", "tuning.dropout=0"]}
CASES = [("zero3", "full"), ("zero3", "lora"), ("zero2", "full")]
ALONE = ["engine=zero2", "engine.offload=cpu"]  # what stage=plan recommends for one GPU
LIMIT = 1e-4  # nats, float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the weights that every case begins with."""
    path = tmp_path_factory.mktemp("ranks")
    config = compose.compose(SMALL)
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    tiny.build(path / "base", corpus(config, dataset), 400, 9216, seed=0)
    (path / "config.json").write_text("{}")
    return path


def run(
    repository: Path, folder: Path, cases: dict[str, list[str]], ranks: int
) -> dict[str, dict[str, Any]]:
    """SC-GRPO of every case on so many ranks (`tests/system/zero_program.py`); what came of it."""
    start = ["-m", "iad_r1.processes.torchrun", "--standalone", f"--nproc-per-node={ranks}"]
    plain = not any("engine=zero" in setting for how in cases.values() for setting in how)
    given = [
        [name, [*SMALL, f"engine.ranks={ranks}", *how], ["grpo"], "base"]
        for name, how in cases.items()
    ]
    program = repository / "tests" / "system" / "zero_program.py"
    done = subprocess.run(
        [sys.executable, *([] if plain else start), program, json.dumps(given), folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {name: torch.load(folder / name / "result.pt") for name in cases}


@pytest.fixture(scope="module")
def one(repository: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The same steps in one process, also in one that DeepSpeed's states are kept for."""
    return run(repository, folder, TUNINGS, 1) | run(repository, folder, {"alone": ALONE}, 1)


@pytest.fixture(scope="module")
def two(repository: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Two ranks, each with an engine of its own."""
    cases = {f"{engine}-{t}": [f"engine={engine}", *TUNINGS[t]] for engine, t in CASES}
    return run(repository, folder, cases, 2)


@pytest.mark.parametrize(("engine", "tuning"), CASES)
def test_after_every_sync_the_engines_of_all_ranks_hold_the_same_weights(two, engine, tuning):
    """Sums of the elements of every parameter, to the last bit."""
    syncs = two[f"{engine}-{tuning}"]["engines"]
    assert len(syncs) == 3 + 3  # of each step, and of the gate after its change: steps 0, 1 and 2
    for first, second in syncs:
        assert len(first) > 20 and first == second
    assert syncs[0][0] == syncs[1][0] != syncs[-1][0]  # training shows


@pytest.mark.parametrize(("engine", "tuning"), CASES)
def test_every_rank_samples_from_the_policy_that_is_trained(two, folder, engine, tuning):
    name = f"{engine}-{tuning}"
    assert max(row["sampler_gap"] for row in two[name]["rows"]) < LIMIT
    with (folder / name / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    assert all(float(row["gap"]) < LIMIT < float(row["shown"]) for row in rows)


def check_same_steps(found: dict[str, Any], plain: dict[str, Any]) -> None:
    """Within what `tests/system/test_zero.py` allows, and explains."""
    assert len(found["rows"]) == 3
    for key in ("loss", "grad_norm", "reward", "kl"):
        ours, theirs = ([row[key] for row in result["rows"]] for result in (plain, found))
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["weights"], plain["weights"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("engine", "tuning"), CASES)
def test_the_steps_are_those_of_one_process(one, two, engine, tuning):
    check_same_steps(two[f"{engine}-{tuning}"], one[tuning])


def test_one_rank_under_zero_has_an_engine_too(one):
    check_same_steps(one["alone"], one["full"])
    assert one["alone"]["learner"] == "ZeroLearner"


def test_under_zero3_a_rank_keeps_a_part_of_the_weights(two):
    assert two["zero3-full"]["held"] < 0.05 * two["zero3-full"]["whole"]
    assert two["zero2-full"]["held"] == two["zero2-full"]["whole"]
