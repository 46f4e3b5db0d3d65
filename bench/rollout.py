"""Sampling of groups: vLLM beside transformers' `generate`, same weights, prompts and lengths.

    python bench/rollout.py --quick              2 prompts, G=4, under 45 s
    python bench/rollout.py --json FILE          8 prompts, G=8

The model is that of bench/grpo_step.py: random weights, 8M parameters, float32; a prompt is a
672 x 672 picture (576 image tokens) and about 45 text tokens. Completions are as ragged as the
paper's: log-normal, 120 tokens on average, 40 to 300. A random model ends nowhere in particular,
so both sides are told where: vLLM per completion; `generate` goes on to the longest row of its
call, as it does when rows end by themselves. Only tokens that were asked for are counted.

`generate` is called once per group, and once with all groups; the faster of the two is the peer.
vLLM is asked through this project's sampler, a request per completion, which checks every prompt
and keeps every log-prob. `ratio` compares processor time per token, which other people's work on
the machine hardly changes; `wall_ratio` is beside it. Its start is not counted, but told.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grpo_step import Clock, Workload, environment, quiet

from bench import record
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.rollouts.colocate.sampler import VllmSampler
from iad_r1.rollouts.sampling import Sampling, Seed
from iad_r1.settings.rollout import Parity, VllmRollout

MEAN, SPREAD, SHORTEST, LONGEST = 120, 0.5, 40, 300  # tokens; SPREAD of their logarithm


def lengths(groups: int, size: int, longest: int = LONGEST) -> np.ndarray:
    """[groups, size] tokens of each completion; the same numbers at every call."""
    scale = longest / LONGEST
    middle = np.log(MEAN * scale) - SPREAD**2 / 2
    drawn = np.random.default_rng(1).lognormal(middle, SPREAD, (groups, size))
    return np.clip(drawn, max(1, SHORTEST * scale), longest).astype(int)


class Ragged(VllmSampler):
    """The sampler of a run, except that the completion with seed (i, j) has `wanted[i, j]` tokens,
    whatever the model would like."""

    wanted: np.ndarray

    def parameters(self, sampling: Sampling, seed: Seed) -> Any:
        found = super().parameters(sampling, seed)
        found.max_tokens = int(self.wanted[seed])
        found.ignore_eos, found.stop_token_ids = True, []
        return found

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[Seed]) -> int:
        """One completion for each prompt; the number of tokens."""
        groups = self.generate(prompts, Sampling(1, int(self.wanted.max()), 1.0), seeds)
        return sum(len(completion.tokens) for group in groups for completion in group)

    def forget(self) -> None:
        """Nothing computed is used again."""
        for reset in self.resets:
            reset()


def settings(sequences: int, length: int, device: str) -> VllmRollout:
    """A sampler that decodes `sequences` completions at once, each at most `length` tokens with
    its prompt."""
    on_gpu = device == "cuda"
    return VllmRollout(
        name="vllm", temperature=1.0, top_p=1.0, top_k=0, max_tokens=length, batch_size=sequences,
        max_num_seqs=sequences, max_model_len=length, max_images=1, memory=0.35,
        kv_cache_gib=None if on_gpu else 2.0, eager=not on_gpu, sleep=True, patience=600.0,
        parity=Parity(every=1, probes=1, tokens=1),
    )  # fmt: skip


def open_sampler(backbone: Backbone, wanted: np.ndarray, prompt: Prompt, at_once: int) -> Ragged:
    """A synchronised sampler for completions of these lengths."""
    length = prompt.inputs["input_ids"].shape[1] + int(wanted.max())
    sampler = Ragged(backbone, settings(at_once, length, backbone.model.device.type))
    sampler.wanted = wanted
    sampler.sync()
    return sampler


def with_vllm(sampler: Ragged, prompts: Sequence[Prompt]) -> int:
    """Every completion of every group; the number of tokens."""
    places = list(np.ndindex(*sampler.wanted.shape))
    return sampler.draw([prompts[group] for group, _ in places], places)


@torch.no_grad()
def with_transformers(
    backbone: Backbone, prompts: Sequence[Prompt], wanted: np.ndarray, groups_per_call: int
) -> int:
    """The same with `generate`; the tokens that were asked for."""
    device = backbone.model.device
    for start in range(0, len(prompts), groups_per_call):
        part = [prompt.inputs for prompt in prompts[start : start + groups_per_call]]
        longest = int(wanted[start : start + groups_per_call].max())
        backbone.model.generate(
            **{key: torch.cat([inputs[key] for inputs in part]).to(device) for key in part[0]},
            do_sample=True,
            top_k=0,
            num_return_sequences=wanted.shape[1],
            min_new_tokens=longest,
            max_new_tokens=longest,
            suppress_tokens=list(backbone.placeholders),
        )
    return int(wanted.sum())


def measure(call: Callable[[], int]) -> dict[str, Any]:
    """Tokens, seconds by the wall and of the processor, tokens a second."""
    start = Clock.now()
    tokens = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    spent = start.since()
    return {
        "tokens": tokens,
        "seconds": round(spent.wall, 3),
        "cpu_seconds": round(spent.cpu, 3),
        "tokens_per_second": round(tokens / spent.wall, 1),
        "tokens_per_cpu_second": round(tokens / spent.cpu, 1),
    }


def ratios(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """The peer's cost of a token over ours."""
    assert peer["tokens"] == ours["tokens"], "both sides draw the same number of tokens"
    return {
        "ratio": round(peer["cpu_seconds"] / ours["cpu_seconds"], 2),
        "wall_ratio": round(peer["seconds"] / ours["seconds"], 2),
    }


def compare(groups: int, size: int) -> dict[str, Any]:
    """Both sides on the same work."""
    work = Workload(groups=groups, size=size)
    backbone, wanted = Backbone(work.model.eval(), work.processor), lengths(groups, size)
    prompts = work.prompts()
    began = time.perf_counter()
    sampler = open_sampler(backbone, wanted, prompts[0], groups * size)
    started = time.perf_counter() - began
    sampler.draw(prompts[:1], [(0, 0)])  # kernels are chosen, memory is found
    sampler.forget()
    with_transformers(backbone, prompts[:1], np.full((1, size), 4), 1)
    found = {
        "vllm": measure(lambda: with_vllm(sampler, prompts)),
        "generate_by_group": measure(lambda: with_transformers(backbone, prompts, wanted, 1)),
    }
    sampler.stop()
    if groups > 1:
        found["generate_at_once"] = measure(
            lambda: with_transformers(backbone, prompts, wanted, groups)
        )
    peers = [found[name] for name in found if name != "vllm"]
    peer = min(peers, key=lambda side: side["cpu_seconds"])
    workload = {
        "prompts": groups,
        "group_size": size,
        "mean_tokens": round(float(wanted.mean()), 1),
        "longest": int(wanted.max()),
        "engine_started_in_seconds": round(started, 1),
    }
    return {**ratios(peer, found["vllm"]), **found, "workload": workload}


def arguments(doc: str | None) -> argparse.Namespace:
    """The command line of a rollout benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, under 45 s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    return options


def report(found: dict[str, Any], options: argparse.Namespace, about: dict[str, Any]) -> None:
    """Print, and write if asked to."""
    result = {**found, "environment": about}
    if options.json:
        record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def main() -> None:
    options = arguments(__doc__)
    about = environment(options.threads)
    report(compare(2, 4) if options.quick else compare(8, 8), options, about)


if __name__ == "__main__":
    main()
