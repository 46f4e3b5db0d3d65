"""Drawing a batch while the batch before it is learned: seconds per step of SC-GRPO.

    python bench/overlap.py --quick              5 steps of each kind; a minute on two busy cores
    python bench/overlap.py --json FILE          20 steps of each kind

A vLLM server (`stage=serve`) draws in a process of its own on the CPU, and the loop of the product
learns in this one with one thread, both with a tiny random Qwen2.5-VL. `ratio` is the median
seconds per step at grpo.overlap=0 over those at grpo.overlap=1. The first step and the last are
left out: the first draws its own batch, and nothing is drawn beside the last. The ratio depends on
how drawing and learning are balanced, and on whether two processor cores are free; so the seconds
of the parts are beside it. Neither run's weights make sense: only time is measured.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench import record
from iad_r1.command import compose
from iad_r1.learn.context import Context
from iad_r1.loops import grpo
from iad_r1.loops.opening import open_run
from iad_r1.rollouts.server.client import Server
from iad_r1.store.run_folder import RunFolder

SETTINGS = [
    "backbone=qwen25vl_3b", "weights=tiny", "engine.precision=float32", "engine.threads=1",
    "rollout=vllm_server", "rollout.kv_cache_gib=0.125", "rollout.memory=0.05",
    "rollout.max_model_len=512", "rollout.max_num_seqs=32", "rollout.eager=true",
    "rollout.patience=280", "rollout.max_tokens=96",
]  # fmt: skip
RUN = [
    "stage=grpo", "grpo.from_base=true", "grpo.group_size=8", "grpo.prompts_per_step=4",
    "grpo.importance.level=token", "grpo.degenerate_groups=keep", "rollout.parity.every=1000",
    "data.sizes.sft=8", "data.sizes.rl=64", "data.sizes.validation=4", "data.sizes.test=4",
    "tracking=none",
]  # fmt: skip
PARTS = ("step", "sync", "parity", "sample", "reference", "update")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a server on a free port, and what waits until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = [sys.executable, str(record.REPOSITORY / "run.py"), "stage=serve", *SETTINGS]
    output = (folder / "server.txt").open("w")
    process = subprocess.Popen(
        [*command, f"rollout.port={port}"], cwd=folder, stdout=output, stderr=subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"
    client = Server(url, 280, "run.py stage=serve")

    def healthy() -> None:
        if process.poll() is not None:
            raise SystemExit((folder / "server.txt").read_text())
        client.ask("/health")

    try:
        yield url, lambda: client.patiently(healthy)
    finally:
        process.terminate()
        process.wait()
        output.close()


def opened(overlap: int, steps: int, url: str, folder: Path) -> Context:
    """A run with its data and weights."""
    config = compose.compose(
        [*SETTINGS, *RUN, f"rollout.servers=[{url}]", f"grpo.overlap={overlap}",
         f"grpo.steps={steps}"]
    )  # fmt: skip
    torch.manual_seed(config.seed)
    return open_run(config, RunFolder.create(folder, f"overlap{overlap}"), None, None)


def measure(context: Context) -> dict[str, Any]:
    """Median seconds of a step and of its parts."""
    lines: list[dict[str, float]] = []
    with mock.patch.object(context, "log", lambda _, __, values: lines.append(dict(values))):
        grpo.train(context)
    inner = lines[1:-1]
    seconds = {
        part: round(statistics.median(line.get(f"seconds_{part}", 0.0) for line in inner), 3)
        for part in PARTS
    }
    return {
        "seconds": seconds,
        "tokens": round(statistics.mean(line["length_mean"] for line in inner), 1),
        "sampler_gap": max(line["sampler_gap"] for line in inner),
        "steps": len(inner),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 steps of each kind")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about, steps = record.environment(), 5 if options.quick else 20
    with tempfile.TemporaryDirectory() as place, serving(Path(place)) as (url, wait):
        runs = [opened(overlap, steps, url, Path(place)) for overlap in (0, 1)]
        wait()
        apart, beside = map(measure, runs)
    ratio = round(apart["seconds"]["step"] / beside["seconds"]["step"], 2)
    result = {"ratio": ratio, "overlap_0": apart, "overlap_1": beside, "environment": about}
    if options.json:
        record.write(options.json, ratio, result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
