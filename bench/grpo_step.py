"""How fast one GRPO step is, beside TRL's GRPOTrainer: same model, data, threads and process.

    python bench/grpo_step.py --quick              the update at G=4, two steps, under 45 s
    python bench/grpo_step.py --json FILE          update at G=4 and 8, whole step at G=4 and 8

The model is a random 8M-parameter Qwen2.5-VL in float32, sized so that vision and text cost the
same share as in Qwen2.5-VL-3B. A prompt is one 672 x 672 picture (576 image tokens) and about 45
text tokens; completions have 120 tokens.

Update: the forward and backward pass of the loss, gradient clipping and AdamW, on given
completions, one group. Whole step: encoding, sampling with transformers, reward, reference
log-probs, update, two groups. Each of our steps runs right after one of TRL's, so both meet the
same load of the machine; times are medians. `ratio` compares processor time, which other people's
work on the machine hardly changes; at one thread on a quiet machine `wall_ratio` is the same.

The limit is the ratio of floating-point operations of the two updates (counted, not estimated,
`torch.utils.flop_counter`): what packing could win at most if both computed at the same rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import torch
import trl
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    TrainerCallback,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from bench import record
from iad_r1.backbones.backbone import Backbone, Inputs, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.backbones.twins import build_twin
from iad_r1.objective.advantages import advantages
from iad_r1.objective.losses import policy_loss
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation

SIDE = 672  # pixels: 48 x 48 patches, 24 x 24 = 576 image tokens
COMPLETION = 120
VOCABULARY = 4096
RATE, CLIP, KL = 1e-5, 0.2, 0.04
OTHERS = 5  # operations named beside matrix products and attention
QUESTION = (
    "You are a quality inspector. Look at the picture and decide whether the product is "
    "defective. Describe the location."
)


# ---------------------------------------------------------------------------------- the workload


def model_of_8m(tokenizer: Any) -> Any:
    """8.0M parameters; per image token the tower costs 0.86 of the text layers (3B: 0.83)."""
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 160,
            "intermediate_size": 432,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [2],
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 12, 12],
            },
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


class Workload:
    """The model, its processor, and prompts, pictures and completions of `groups` groups."""

    def __init__(self, groups: int, size: int) -> None:
        folder = build_twin("qwen2_5_vl", Path(tempfile.mkdtemp()) / "twin")
        processor = AutoProcessor.from_pretrained(folder)
        processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": SIDE * SIDE}
        rng = np.random.default_rng(0)
        self.size = size
        self.processor = processor
        self.model = model_of_8m(processor.tokenizer)
        # TRL finds its reference on disk; the policy starts there, as at the start of a run
        self.checkpoint = folder.parent / "model"
        self.model.save_pretrained(self.checkpoint)
        self.model.config._name_or_path = str(self.checkpoint)
        self.pictures = [
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
            for _ in range(groups)
        ]
        high = len(processor.tokenizer)
        self.completions = rng.integers(10, high, (groups, size, COMPLETION)).tolist()
        self.rewards = {tuple(c): float(rng.random()) for g in self.completions for c in g}

    def prompts(self) -> list[Prompt]:
        backbone = Backbone(self.model, self.processor)
        return [
            backbone.encode(Conversation("{image}" + QUESTION), [picture])
            for picture in self.pictures
        ]


def reward(tokens: Sequence[int]) -> float:
    """Any deterministic number between 0 and 1; scoring is not what is measured."""
    return sum(tokens) % 101 / 100


# --------------------------------------------------------------------------------------- our side


class Ours:
    """One group-packed update, or one whole step, of this project."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.model = copy.deepcopy(work.model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0)
        self.reference = copy.deepcopy(work.model).eval()
        self.encoded = [prompt.inputs for prompt in work.prompts()]

    def update(self, packing: Any = "group") -> None:
        scores = [[self.work.rewards[tuple(c)] for c in g] for g in self.work.completions]
        self._learn(self.encoded, self.work.completions, scores, None, packing)

    def whole_step(self) -> int:
        """Returns the number of tokens sampled."""
        prompts = self.work.prompts()
        sampler = HfSampler(Backbone(self.model, self.work.processor), batch_size=64)
        seeds = [(0, number) for number in range(len(prompts))]
        inputs = [prompt.inputs for prompt in prompts]
        drawn = sampler.generate(prompts, Sampling(self.work.size, COMPLETION, 1.0), seeds)
        groups = [[list(c.tokens) for c in group] for group in drawn]
        scores = [[reward(c) for c in group] for group in groups]
        with torch.no_grad():
            known = completion_logprobs(self.reference, inputs, groups, entropy=False)
        self._learn(inputs, groups, scores, known.logprob, "group")
        return sum(len(c) for group in groups for c in group)

    def _learn(
        self, prompts: Sequence[Inputs], groups: Any, scores: Any, ref: Any, packing: Any
    ) -> None:
        gains = torch.tensor([a for group in advantages(scores) for a in group])
        out = completion_logprobs(self.model, prompts, groups, packing=packing)
        loss, _ = policy_loss(
            out.logprob, None, ref, gains, out.mask, clip_low=CLIP, clip_high=CLIP,
            kl_coef=0.0 if ref is None else KL, n_sequences=len(gains),
            n_tokens=int(out.mask.sum()),
        )  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


# --------------------------------------------------------------------------------------- the peer


class AfterStep(TrainerCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.call()


def trl_trainer(
    work: Workload, steps: int, beta: float, fixed: bool, sampled: list[int] | None = None
) -> Any:
    """GRPOTrainer on the workload: given completions (`fixed`), or its own sampling,
    whose number of tokens per step is then added to `sampled`."""
    groups, size = len(work.completions), work.size
    flat = [c for group in work.completions for c in group]
    ids = [p.inputs["input_ids"][0].tolist() for p in work.prompts() for _ in range(size)]

    def rollout(prompts: list, trainer: Any) -> dict[str, list]:
        return {
            "prompt_ids": ids,
            "completion_ids": flat,
            "logprobs": [[0.0] * len(c) for c in flat],
        }

    def scored(completion_ids: list, **_: Any) -> list[float | None]:
        if sampled is not None:
            sampled.append(sum(map(len, completion_ids)))
        return [reward(tokens) for tokens in completion_ids]

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=groups * size, num_generations=size, max_steps=steps,
        max_completion_length=COMPLETION, beta=beta, epsilon=CLIP, loss_type="grpo",
        learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        shuffle_dataset=False, save_strategy="no", logging_strategy="no", report_to=[],
        disable_tqdm=True,
        generation_kwargs={"suppress_tokens": work.processor.tokenizer.convert_tokens_to_ids(
            ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"])},
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": QUESTION}], "images": [picture]}
        for picture in work.pictures
    ]
    model = copy.deepcopy(work.model)
    model.model.visual.config._attn_implementation = "sdpa"  # as TRL would have loaded it
    return GRPOTrainer(
        model=model, args=config, reward_funcs=scored, processing_class=work.processor,
        train_dataset=datasets.Dataset.from_list(rows * steps),
        rollout_func=rollout if fixed else None,
    )  # fmt: skip


def on_update_start(trainer: Any, call: Callable[[], None]) -> None:
    """Call right before TRL's loss of each step: generation and scoring are done by then."""
    compute = trainer.compute_loss

    def timed(*args: Any, **kwargs: Any) -> Any:
        call()
        return compute(*args, **kwargs)

    trainer.compute_loss = timed


# ------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class Clock:
    """Seconds by the wall, and seconds this process computed. On a machine shared with others the
    second is the steadier of the two; with one thread and nobody else they are equal."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Clock:
        return Clock(time.perf_counter(), time.process_time())

    def since(self) -> Clock:
        now = Clock.now()
        return Clock(now.wall - self.wall, now.cpu - self.cpu)


def clocked(call: Callable[[], Any]) -> Clock:
    start = Clock.now()
    call()
    return start.since()


@dataclass
class Times:
    """One entry per step and side; a step of ours follows each of theirs."""

    ours: list[Clock]
    theirs: list[Clock]

    def summary(self) -> dict[str, Any]:
        def median(side: list[Clock], kind: str) -> float:
            return statistics.median(getattr(clock, kind) for clock in side)

        return {
            "ratio": round(median(self.theirs, "cpu") / median(self.ours, "cpu"), 2),
            "wall_ratio": round(median(self.theirs, "wall") / median(self.ours, "wall"), 2),
            "ours_seconds": round(median(self.ours, "wall"), 3),
            "trl_seconds": round(median(self.theirs, "wall"), 3),
            "ours_cpu_seconds": round(median(self.ours, "cpu"), 3),
            "trl_cpu_seconds": round(median(self.theirs, "cpu"), 3),
            "ours_fastest": round(min(c.wall for c in self.ours), 3),
            "trl_fastest": round(min(c.wall for c in self.theirs), 3),
            "steps": len(self.ours),
        }


def measure_update(size: int, steps: int) -> dict[str, Any]:
    """Update seconds of both sides at group size `size`, and what an operation count says.

    The first step of each side warms up, and its operations are counted.
    """
    work = Workload(groups=1, size=size)
    ours, trainer = Ours(work), trl_trainer(work, steps + 1, beta=0.0, fixed=True)
    times, started = Times([], []), [Clock.now()]
    counter, flops = counting(), [0, 0]

    def before() -> None:
        if not flops[0]:
            counter.__enter__()
        started[0] = Clock.now()

    def after() -> None:
        if not flops[0]:
            counter.__exit__(None, None, None)
            flops[:] = counter.get_total_flops(), flop_count(ours.update)
            return
        times.theirs.append(started[0].since())
        times.ours.append(clocked(ours.update))

    on_update_start(trainer, before)
    trainer.add_callback(AfterStep(after))
    trainer.train()
    return {
        **times.summary(),
        "limit": round(flops[0] / flops[1], 2),
        "ours_gflop": round(flops[1] / 1e9, 1),
        "trl_gflop": round(flops[0] / 1e9, 1),
        "ours_time_is_spent_on": shares(ours.update),
        "prompt_tokens": ours.encoded[0]["input_ids"].shape[1],
    }


def measure_whole_step(size: int, steps: int) -> dict[str, Any]:
    """Seconds of encode + sample + score + reference + update, two groups."""
    work = Workload(groups=2, size=size)
    tokens: list[int] = []
    trl_tokens: list[int] = []
    ours, trainer = Ours(work), trl_trainer(work, steps + 1, KL, fixed=False, sampled=trl_tokens)
    times, started = Times([], []), [Clock.now()]

    def after() -> None:
        times.theirs.append(started[0].since())
        times.ours.append(clocked(lambda: tokens.append(ours.whole_step())))
        started[0] = Clock.now()

    started[0] = Clock.now()
    trainer.add_callback(AfterStep(after))
    trainer.train()
    times = Times(times.ours[1:], times.theirs[1:])
    return {
        **times.summary(),
        "ours_tokens": round(statistics.mean(tokens[1:])),
        "trl_tokens": round(statistics.mean(trl_tokens[1:])),
    }


def _attention_flop(
    query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """Scores and weighted values, every query against every key (masks save no work on a CPU)."""
    rows, heads, width, dim = query
    return 4 * rows * heads * width * key[2] * dim


def _attention_backward_flop(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Five products instead of the two of the forward pass: scores again and four gradients."""
    rows, heads, width, dim = query
    return 10 * rows * heads * width * key[2] * dim


ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


def counting() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS)


def flop_count(call: Callable[[], Any]) -> int:
    with counting() as counter:
        call()
    return counter.get_total_flops()


def shares(call: Callable[[], Any]) -> dict[str, float]:
    """Fraction of the time inside matrix products, attention, the largest other operations by
    name, and all the rest together."""
    with torch.profiler.profile() as profile:
        call()
    spent = {"matrix products": 0.0, "attention": 0.0}
    other: dict[str, float] = {}
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            spent["matrix products"] += event.self_cpu_time_total
        elif name.startswith("_scaled_dot_product"):
            spent["attention"] += event.self_cpu_time_total
        else:
            other[name] = other.get(name, 0.0) + event.self_cpu_time_total
    largest = sorted(other, key=other.__getitem__, reverse=True)[:OTHERS]
    spent |= {name: other.pop(name) for name in largest}
    spent["everything else"] = sum(other.values())
    total = sum(spent.values())
    return {kind: round(value / total, 3) for kind, value in spent.items()}


def environment(threads: int) -> dict[str, Any]:
    return record.environment(threads=threads, trl=trl.__version__)


def quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("transformers", "trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the update at G=4 only")
    parser.add_argument("--steps", type=int, help="measured steps of each side (quick: 2, else 7)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    quiet()
    torch.set_num_threads(options.threads)
    about = environment(options.threads)
    steps = options.steps or (2 if options.quick else 7)
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "update_g4": lambda: measure_update(4, steps),
        "update_g8": lambda: measure_update(8, steps),
        "whole_step_g4": lambda: measure_whole_step(4, max(1, steps // 2)),
        "whole_step_g8": lambda: measure_whole_step(8, max(1, steps // 2)),
    }
    found: dict[str, Any] = {}
    for name in list(measurements)[: 1 if options.quick else None]:
        found[name] = measurements[name]()
        # written after each part: the whole takes minutes
        result = {"ratio": found["update_g4"]["ratio"], **found, "environment": about}
        if options.json:
            record.write(options.json, result["ratio"], result)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
