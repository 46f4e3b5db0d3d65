"""Main memory of a process that trains through vLLM: does it grow from step to step?

    python bench/host_memory.py --quick          20 steps, under 45 s
    python bench/host_memory.py --json FILE      200 steps

Trainers whose processes grew until the machine killed them (verl issue 630, EasyR1 issue 268) did
so after hours. So the slope is measured: SC-GRPO as a run has it, with `rollout=vllm` in the
process, on a tiny random Qwen2.5-VL and 64 drawn pictures. Weights go to the engine at every
step, the parity gate runs every 20 steps, a checkpoint is written every 50. The slope is that of
the least squares line through `host_memory_mib` of metrics.jsonl, without the first fifth, where
caches fill.

`ratio` is the slope that is allowed, 1 MiB per step, over the one that was measured: 10,000 steps
would then take 10 GiB. What is below 0.01 MiB per step, or negative, counts as 0.01.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench import record
from iad_r1.command import compose
from iad_r1.loops import grpo
from iad_r1.loops.opening import open_run
from iad_r1.store.run_folder import RunFolder

SETTINGS = [
    "backbone=qwen25vl_3b", "weights=tiny", "engine.precision=float32", "engine.threads=1",
    "rollout=vllm", "rollout.kv_cache_gib=0.125", "rollout.memory=0.05", "rollout.eager=true",
    "rollout.max_num_seqs=32", "rollout.max_tokens=24", "rollout.parity.probes=2",
    "stage=grpo", "grpo.from_base=true", "grpo.group_size=8", "grpo.prompts_per_step=4",
    "grpo.degenerate_groups=keep", "grpo.save_every=50", "grpo.max_pixels=50176",
    "data.sizes.sft=8", "data.sizes.rl=64", "data.sizes.validation=4", "data.sizes.test=4",
    "tracking=none",
]  # fmt: skip
ALLOWED, LEAST = 1.0, 0.01  # MiB per step


def measure(steps: int) -> list[float]:
    """MiB that the process holds after each step."""
    held: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        config = compose.compose([*SETTINGS, f"grpo.steps={steps}"])
        torch.manual_seed(config.seed)
        context = open_run(config, RunFolder.create(Path(place), "run"), None, None)
        with mock.patch.object(
            context, "log", lambda _, __, values: held.append(values["host_memory_mib"])
        ):
            grpo.train(context)
    return held


def slope(held: Sequence[float]) -> float:
    """MiB per step."""
    begun = len(held) // 5
    later = np.arange(begun, len(held))
    return float(np.polyfit(later, held[begun:], 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about, began = record.environment(), time.perf_counter()
    held = measure(20 if options.quick else 200)
    grown = slope(held)
    result: dict[str, Any] = {
        "ratio": round(ALLOWED / max(grown, LEAST), 2),
        "slope_mib_per_step": round(grown, 4),
        "allowed_mib_per_step": ALLOWED,
        "steps": len(held),
        "held_mib": {
            str(step): round(held[step], 1)
            for step in (0, len(held) // 5, len(held) // 2, len(held) - 1)
        },
        "environment": {"seconds": round(time.perf_counter() - began), **about},
    }
    if options.json:
        record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
