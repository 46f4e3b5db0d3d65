"""A whole run through vLLM learns what the same run learns through transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]
STEPS = 16
SMALL = [
    "tracking=none",
    "engine.ranks=1",
    "data.sizes.sft=256",
    "data.sizes.rl=64",
    "data.sizes.validation=8",
    "data.sizes.test=12",
    "pretrain.images=512",
    "pretrain.steps=60",
    "sft.phases.0.steps=80",
    "sft.phases.0.batch_size=16",
    "sft.phases.1.steps=10",
    "sft.phases.1.batch_size=16",
    "evaluate.shots=[0]",
    "evaluate.max_tokens=48",
    "rollout.max_tokens=48",
    f"grpo.steps={STEPS}",
    "grpo.prompts_per_step=8",
    "grpo.group_size=8",
    "grpo.rollouts_every=1",
]
VLLM = [
    "rollout=vllm",
    "rollout.kv_cache_gib=0.5",
    "rollout.max_model_len=512",
    "rollout.max_num_seqs=64",
    "rollout.eager=true",
    "rollout.parity.every=8",
    "rollout.parity.probes=2",
]


@pytest.fixture(scope="module")
def iad(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`iad("hf", "stage=grpo")`: the folder of a run of that name that ended well."""
    place = tmp_path_factory.mktemp("runs")

    def run(name: str, *overrides: str) -> Path:
        done = subprocess.run(
            [sys.executable, str(repository / "run.py"), f"name={name}", *SMALL, *overrides],
            cwd=place,
            env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
            capture_output=True,
            text=True,
            timeout=1100,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return max((place / "outputs" / name).iterdir())

    return run


@pytest.fixture(scope="module")
def runs(iad: Callable[..., Path]) -> dict[str, Path]:
    """An evaluation and SC-GRPO from the same fine-tuned weights, seeds and pictures, through
    either engine."""
    start = iad("start", "stage=sft", "stage.steps=[pretrain,sft]")
    grpo = ["stage=grpo", f"init={start}", "stage.steps=[evaluate,grpo]"]
    return {"hf": iad("hf", *grpo), "vllm": iad("vllm", *grpo, *VLLM)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewards(folder: Path) -> np.ndarray:
    """[steps, prompts] mean reward of the group of each picture."""
    tables = [pd.read_parquet(path) for path in sorted((folder / "rollouts").glob("grpo-*"))]
    return np.array(
        [table.groupby("id", sort=True)["reward"].mean().to_numpy() for table in tables]
    )
