"""Sampling and evaluation at the true size of published models, on one GPU, with random weights.

    python bench/gpu_rollout.py --json FILE        Qwen2.5-VL 3B and 7B (nothing is downloaded)
    python bench/gpu_rollout.py --tiny             a rehearsal: tiny twins, any machine

For every model, trainer's weights and colocated sampler on the same GPU: seconds to start the
sampler (which begins with random weights of its own, `load_format=dummy`), to send it the trainer's
weights (`sync_seconds`, median of --syncs), to put it to sleep and to wake it, and the GiB that
sleep gives back; then tokens per second of groups through vLLM and through `generate`
(bench/rollout.py), and of an evaluation given at once and four at a time (bench/evaluate.py).
`ratio` is `generate`'s wall time over vLLM's for the first model, `evaluate.wall_ratio` the time
of four at a time over all at once. On a CPU there is no sleep, and its numbers are null.
Needs the packages of `.[gpu,vllm,dev]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import ROOM, in_fours, streamed
from gpu_grpo import Work, attempt, environment, synchronised
from grpo_step import quiet
from rollout import (
    LONGEST,
    Ragged,
    lengths,
    measure,
    open_sampler,
    ratios,
    with_transformers,
    with_vllm,
)

from bench import record


def seconds(call: Callable[[], Any]) -> float:
    """Of one call, the GPU's work included."""
    start = synchronised()
    call()
    return round(synchronised() - start, 3)


def free_gib() -> float:
    """Of the GPU's memory."""
    return torch.cuda.mem_get_info()[0] / 2**30


def sleeping(sampler: Ragged) -> dict[str, float | None]:
    """Level 1, as between samplings: weights go to main memory, keys and values are dropped."""
    if not torch.cuda.is_available():
        return {"sleep_seconds": None, "wake_seconds": None, "freed_gib": None}
    sampler.llm.wake_up()
    before = free_gib()
    fell = seconds(lambda: sampler.llm.sleep(level=1))
    freed = free_gib() - before
    woke = seconds(sampler.llm.wake_up)
    sampler.close()
    return {"sleep_seconds": fell, "wake_seconds": woke, "freed_gib": round(freed, 2)}


def sampling(sampler: Ragged, work: Work, wanted: np.ndarray) -> dict[str, Any]:
    """Groups through vLLM and through `generate`, one group per call and all at once."""
    prompts, sampler.wanted = work.prompts()[: len(wanted)], wanted
    sampler.draw(prompts[:1], [(0, 0)])  # kernels are chosen
    sampler.forget()
    found = {"vllm": measure(lambda: with_vllm(sampler, prompts))}
    sampler.close()
    for name, per_call in (("generate_by_group", 1), ("generate_at_once", len(prompts))):
        found[name] = attempt(
            lambda n=per_call: measure(lambda: with_transformers(work.backbone, prompts, wanted, n))
        )
    peers = [side for side in found.values() if "seconds" in side and side is not found["vllm"]]
    best = min(peers, key=lambda side: side["seconds"], default=None)
    return {**(ratios(best, found["vllm"]) if best else {}), **found}


def evaluation(sampler: Ragged, work: Work, longest: int) -> dict[str, Any]:
    """All pictures at once, and four at a time, each from empty caches."""
    prompts = work.prompts()
    sampler.wanted = lengths(len(prompts), 1, longest)
    found: dict[str, Any] = {}
    for name, pattern in {"streamed": streamed, "in_fours": in_fours}.items():
        sampler.forget()
        found[name] = measure(lambda pattern=pattern: pattern(sampler, prompts))
    return {**ratios(found["in_fours"], found["streamed"]), **found}


def measure_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model; the sampler is ended afterwards."""
    work = Work(name, options.pictures, options.size, options)
    work.model.eval()
    longest = 24 if options.tiny else LONGEST
    wanted = lengths(options.groups, options.size, longest)
    opened: list[Ragged] = []
    started = seconds(
        lambda: opened.append(open_sampler(work.backbone, wanted, work.prompts()[0], ROOM))
    )
    sampler = opened[0]
    try:
        synced = statistics.median(seconds(sampler.sync) for _ in range(options.syncs))
        found = {"start_seconds": started, "sync_seconds": synced, **sleeping(sampler)}
        found["evaluate"] = evaluation(sampler, work, longest)
        return {**found, **sampling(sampler, work, wanted)}
    finally:
        sampler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default="qwen25vl_3b,qwen25vl_7b")
    parser.add_argument("--pictures", type=int, default=64, help="of the evaluation")
    parser.add_argument("--groups", type=int, default=16, help="of them sampled in groups")
    parser.add_argument("--size", type=int, default=8, help="completions of each")
    parser.add_argument("--syncs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny twins")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    options.checkpointing = False  # for `Work`: nothing is trained
    quiet()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("true sizes need a GPU; --tiny rehearses on any machine")
    result: dict[str, Any] = {"ratio": None, "environment": environment()}
    for name in options.backbones.split(","):
        result[name] = attempt(lambda name=name: measure_model(name, options))
        result["ratio"] = result["ratio"] or result[name].get("wall_ratio")
        if options.json:  # after each part: the whole takes minutes
            record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
