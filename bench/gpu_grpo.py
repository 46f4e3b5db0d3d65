"""GRPO at the true size of published models, on one GPU, with random weights (no download).

    python bench/gpu_grpo.py --json FILE                    Qwen2.5-VL-3B and LLaVA-OneVision-0.5B
    python bench/gpu_grpo.py --backbones qwen25vl_7b --checkpointing
    python bench/gpu_grpo.py --tiny                         a rehearsal: tiny twins, any machine

For every model and group size: seconds per update (forward, backward, clipping, AdamW, in bfloat16)
of this project packed, through SDPA (`group`) and through FlexAttention (`group_flex`), and plain
(`off`), and of TRL's GRPOTrainer where it is installed; completion tokens per second, peak GPU
memory in GiB, and the share of the GPU's dense bfloat16 peak that the counted floating-point
operations make up (`mfu`; with --checkpointing the operations of the second forward count too).
Then the whole step of this project: encoding, sampling with transformers, reward, reference
log-probs, update.

A prompt is one 672 x 672 picture and about 45 words; completions have 120 tokens. Completions of
the updates are given, so every side learns from the same tokens. A side that runs out of memory, or
that this machine cannot run, says so instead of a number.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from bench import record
from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import Packing, check_packing, completion_logprobs
from iad_r1.backbones.published.build import build_processor, build_random
from iad_r1.errors import ConfigError
from iad_r1.objective.advantages import advantages
from iad_r1.objective.losses import policy_loss
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation

SIDE, COMPLETION = 672, 120
RATE, CLIP, KL = 1e-6, 0.2, 0.04
QUESTION = (
    "You are a quality inspector. Look at the picture and decide whether the product is "
    "defective. Describe the location."
)
SIDES: dict[str, Packing] = {"packed": "group", "packed_flex": "group_flex", "unpacked": "off"}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, by name


class Work:
    """One model on the device, `groups` prompts, and given completions with their rewards."""

    def __init__(self, name: str, groups: int, size: int, options: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.size = size
        self.backbone = tiny(name) if options.tiny else self._published(name)
        self.model: Any = self.backbone.model.to(self.device).train()
        if options.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        rng = np.random.default_rng(0)
        side = 56 if options.tiny else SIDE
        self.pictures = [
            Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
            for _ in range(groups)
        ]
        high = min(30_000, len(self.backbone.tokenizer))
        length = 12 if options.tiny else COMPLETION
        self.completions = rng.integers(high // 2, high, (groups, size, length)).tolist()
        self.scores = [[float(rng.random()) for _ in group] for group in self.completions]

    def _published(self, name: str) -> Backbone:
        return Backbone(build_random(name, torch.bfloat16, self.device), build_processor(name))

    @property
    def tokens(self) -> int:
        """Completion tokens of one update."""
        return sum(len(c) for group in self.completions for c in group)

    def prompts(self) -> list[Prompt]:
        conversation = Conversation("{image}" + QUESTION)
        return [self.backbone.encode(conversation, [picture]) for picture in self.pictures]


def tiny(name: str) -> Backbone:
    """The backbone's twin, for a rehearsal of everything but the size."""
    return Backbone.load(twins.build_twin(name, Path(tempfile.mkdtemp()) / name))


# ------------------------------------------------------------------------------------- our side


class Ours:
    """Updates, and whole steps, of this project on the work's own model."""

    def __init__(self, work: Work, packing: Packing) -> None:
        self.work = work
        self.packing: Packing = packing
        self.adam = torch.optim.AdamW(work.model.parameters(), lr=RATE, weight_decay=0.0)
        self.inputs = [prompt.inputs for prompt in work.prompts()]

    def update(self) -> None:
        self.learn(self.inputs, self.work.completions, self.work.scores, None)

    def whole_step(self, reference: Any) -> int:
        """Returns the number of tokens sampled."""
        work, prompts = self.work, self.work.prompts()
        limit = len(work.completions[0][0])
        seeds = [(0, number) for number in range(len(prompts))]
        sampler = HfSampler(work.backbone, batch_size=64)
        drawn = sampler.generate(prompts, Sampling(work.size, limit, 1.0), seeds)
        groups = [[list(c.tokens) for c in group] for group in drawn]
        scores = [[sum(c) % 101 / 100 for c in group] for group in groups]
        inputs = [prompt.inputs for prompt in prompts]
        with torch.no_grad():
            known = completion_logprobs(
                reference, inputs, groups, packing=self.packing, entropy=False
            )
        self.learn(inputs, groups, scores, known.logprob)
        return sum(len(c) for group in groups for c in group)

    def learn(self, inputs: Any, groups: Any, scores: Any, reference: Any) -> None:
        gains = torch.tensor([a for group in advantages(scores) for a in group])
        self.work.model.train()
        out = completion_logprobs(self.work.model, inputs, groups, packing=self.packing)
        loss, _ = policy_loss(
            out.logprob, None, reference, gains.to(self.work.device), out.mask, clip_low=CLIP,
            clip_high=CLIP, kl_coef=0.0 if reference is None else KL, n_sequences=len(gains),
            n_tokens=int(out.mask.sum()),
        )  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.work.model.parameters(), 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


# ---------------------------------------------------------------------------------- measurements


def synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def utilisation(flop: int, seconds: float) -> float | None:
    """Share of the GPU's peak; None where the peak is not known here."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK.items() if key in name), None)
    return None if peak is None else round(flop / seconds / peak, 4)


def timed(call: Callable[[], Any], steps: int) -> float:
    """Median seconds; the first two calls warm up (kernels are chosen, memory is found)."""
    seconds = []
    for _ in range(steps + 2):
        start = synchronised()
        call()
        seconds.append(synchronised() - start)
    return statistics.median(seconds[2:])


def measure_ours(name: str, size: int, packing: Packing, options: Any) -> dict[str, Any]:
    """The update with one group per `options.groups`. What FlexAttention computes is counted as
    SDPA does it: a compiled kernel cannot be looked into."""
    work = Work(name, options.groups, size, options)
    check_packing(packing, work.device, torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        Ours(work, "group" if packing == "group_flex" else packing).update()
    ours = Ours(work, packing)
    forget_peak()
    seconds = timed(ours.update, options.steps)
    flop = counter.get_total_flops()
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(work.tokens / seconds, 1),
        "peak_gib": peak_gib(),
        "tflop": round(flop / 1e12, 3),
        "mfu": utilisation(flop, seconds),
    }


def measure_whole(name: str, size: int, options: Any) -> dict[str, Any]:
    """Encoding, sampling, reward, reference and update; the reference is a model of its own."""
    work = Work(name, options.groups, size, options)
    reference = Work(name, 1, size, options).model.eval().requires_grad_(False)
    ours, sampled = Ours(work, "group"), []
    forget_peak()
    seconds = timed(lambda: sampled.append(ours.whole_step(reference)), max(1, options.steps // 3))
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(statistics.mean(sampled) / seconds, 1),
        "peak_gib": peak_gib(),
    }


def measure_trl(name: str, size: int, options: Any) -> dict[str, Any]:
    """TRL's update on the same completions, from the start of its first loss to the end of the
    optimiser's step (bench/grpo_step.py does the same on a CPU)."""
    from grpo_step import AfterStep, on_update_start
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    work = Work(name, options.groups, size, options)
    flat = [c for group in work.completions for c in group]
    table = {
        tuple(c): r
        for group, scores in zip(work.completions, work.scores, strict=True)
        for c, r in zip(group, scores, strict=True)
    }
    ids = [p.inputs["input_ids"][0].tolist() for p in work.prompts() for _ in range(size)]
    rollout = {
        "prompt_ids": ids,
        "completion_ids": flat,
        "logprobs": [[0.0] * len(c) for c in flat],
    }
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=work.device.type == "cpu", bf16=False,
        gradient_checkpointing=options.checkpointing, per_device_train_batch_size=len(flat),
        num_generations=size, max_steps=options.steps + 2, beta=0.0, epsilon=CLIP,
        max_completion_length=len(flat[0]), loss_type="grpo", learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, shuffle_dataset=False,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    import datasets

    rows = [
        {"prompt": [{"role": "user", "content": QUESTION}], "images": [picture]}
        for picture in work.pictures
    ]
    trainer = GRPOTrainer(
        model=work.model, args=config, rollout_func=lambda *_: rollout,
        reward_funcs=lambda completion_ids, **_: [table[tuple(c)] for c in completion_ids],
        train_dataset=datasets.Dataset.from_list(rows * (options.steps + 2)),
        processing_class=work.backbone.processor,
    )  # fmt: skip
    started, seconds = [0.0], []
    on_update_start(trainer, lambda: started.__setitem__(0, synchronised()))
    trainer.add_callback(AfterStep(lambda: seconds.append(synchronised() - started[0])))
    forget_peak()
    trainer.train()
    median = statistics.median(seconds[2:])
    return {
        "seconds": round(median, 4),
        "tokens_per_second": round(work.tokens / median, 1),
        "peak_gib": peak_gib(),
    }


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The numbers, or why there are none. Everything is given back afterwards."""
    try:
        return measure()
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}
    except ConfigError as error:
        return {"refused": str(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_all(name: str, size: int, options: Any) -> dict[str, Any]:
    """Every side, one after the other."""
    found: dict[str, Any] = {
        side: attempt(partial(measure_ours, name, size, packing, options))
        for side, packing in SIDES.items()
    }
    if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets"):
        found["trl"] = attempt(lambda: measure_trl(name, size, options))
    found["whole_step"] = attempt(lambda: measure_whole(name, size, options))
    ours = found["packed"].get("seconds")
    for side in ("packed_flex", "unpacked", "trl"):
        theirs = found.get(side, {}).get("seconds")
        found[f"ratio_{side}"] = round(theirs / ours, 2) if ours and theirs else None
    return found


def environment() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    root = Path(__file__).resolve().parent.parent
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if cuda else None,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", default="qwen25vl_3b,llava_ov_05b")
    parser.add_argument("--sizes", default="4,8", help="group sizes")
    parser.add_argument("--groups", type=int, default=1, help="groups per update")
    parser.add_argument("--steps", type=int, default=9, help="measured updates of each side")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny twins")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("true sizes need a GPU; --tiny rehearses on any machine")
    result: dict[str, Any] = {"ratio": None, "environment": environment()}
    for name in options.backbones.split(","):
        for size in map(int, options.sizes.split(",")):
            found = measure_all(name, size, options)
            result[f"{name}_g{size}"] = found
            result["ratio"] = result["ratio"] or found["ratio_unpacked"]
            if options.json:  # after each part: the whole takes minutes
                record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
