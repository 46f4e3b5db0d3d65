"""Memory as `stage=plan` predicts it, beside what true-size steps take on a GPU.

    python bench/gpu_plan.py --json FILE          one GPU of 80 GiB or more: four steps, minutes
    python bench/gpu_plan.py --rehearse           the same code on the CPU, narrow models

Qwen2.5-VL-3B and LLaVA-OneVision-0.5B with random weights at their true size (`weights=random`),
full bfloat16 tuning on one GPU (engine=single): one step of PA-SFT and one of SC-GRPO (reference
policy, group-packed forward, sampling with transformers). Each in a process of its own; measured
in the second step, when AdamW has its moments.

`ratio` is predicted / measured of what torch allocates at its highest, the geometric mean over the
steps: 1 is a perfect prediction. `overhead_gib` is what the GPU holds beside what torch reserved
(CUDA's context, libraries): `stage.overhead` should cover it. `reserved_over_allocated` is what the
allocator's blocks cost on top: `stage.margin` should cover that.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plan
import torch

from iad_r1.backbones import published
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.published.build import build_processor, build_random
from iad_r1.planner import memory
from iad_r1.planner.memory import GIB
from iad_r1.planner.widths import Architecture, widths_of
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling

QWEN = plan.Case("qwen25vl_3b", 2048, 36, 1280, 672, precision="bfloat16")
ONEVISION = plan.Case("llava_ov_05b", 896, 24, 1152, 384, precision="bfloat16")
SFT = {"groups": 2, "completions": 1, "length": 256}
GRPO = {"groups": 1, "completions": 4, "length": 512, "reference": True}
CASES: Mapping[str, plan.Case] = {
    "llava_ov_05b_sft": replace(ONEVISION, **SFT),
    "llava_ov_05b_grpo": replace(ONEVISION, **GRPO),
    "qwen25vl_3b_sft": replace(QWEN, **SFT),
    "qwen25vl_3b_grpo": replace(QWEN, **GRPO),
}
TEXT = 200  # tokens of a prompt beside its picture


def narrow(case: plan.Case) -> plan.Case:
    """The same step for a rehearsal: two narrow layers, short completions, float32; the vocabulary
    is the true one, as the tokenizer is."""
    config = published.read(case.backbone)["config"]
    vocab = config.get("text_config", config)["vocab_size"]
    small = replace(case, hidden=128, layers=2, tower=64, side=min(case.side, 384), length=12)
    return replace(small, precision="float32", vocab=vocab)


def measure_here(name: str, rehearse: bool) -> dict[str, float]:
    """One case in this process, GiB."""
    device = "cpu" if rehearse else "cuda"
    case = narrow(CASES[name]) if rehearse else CASES[name]
    torch.manual_seed(0)
    model = plan.narrow(case) if rehearse else build_random(case.backbone, device=device)
    about = widths_of(model.config.to_dict())
    work = plan.work_of(about, case, TEXT)
    trainer = plan.Trainer(model, about, case, work, device)
    trainer.step()
    setup = case.setup(cuda=not rehearse)
    predicted = memory.training(about, work, setup, entropy=case.completions > 1)
    found = {
        "predicted_gib": predicted.peak / GIB,
        "measured_gib": peak(trainer.step, trainer, device) / GIB,
    }
    if not rehearse:
        found |= used_beside()
    if case.completions > 1:
        found |= sampling(trainer, about, device)
    started = time.perf_counter()
    trainer.step()
    return {**found, "seconds": time.perf_counter() - started}


def peak(action: Callable[[], Any], trainer: plan.Trainer, device: str) -> int:
    """The most bytes torch has allocated while `action` runs."""
    if device == "cpu":
        return trainer.standing() + plan.allocated(action)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def used_beside() -> dict[str, float]:
    """What the GPU holds beside torch's blocks, and those beside what is in them."""
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return {
        "overhead_gib": (total - free - reserved) / GIB,
        "reserved_over_allocated": torch.cuda.max_memory_reserved()
        / torch.cuda.max_memory_allocated(),
    }


def sampling(trainer: plan.Trainer, about: Architecture, device: str) -> dict[str, float]:
    """Sampling a group with the training weights, optimiser states standing by."""
    case, work = trainer.case, trainer.work
    backbone = Backbone(trainer.base, build_processor(case.backbone))
    prompt = Prompt(text="", images=(), inputs=trainer.prompts[0], name="bench")
    settings = Sampling(case.completions, work.length, 1.0)
    sampler = HfSampler(backbone, case.completions)
    measured = peak(lambda: sampler.generate([prompt], settings, [(0,)]), trainer, device)
    setup = case.setup(cuda=device == "cuda")
    one = replace(work, groups=1)
    predicted = (
        memory.states(about, setup).standing
        + memory.hf_sampling(about, one, case.completions, setup).total
    )
    return {
        "predicted_sampling_gib": predicted / GIB,
        "measured_sampling_gib": measured / GIB,
    }


def measure(name: str, rehearse: bool) -> dict[str, float]:
    """`measure_here` in a process of its own, so that no case inherits another's blocks."""
    command = [sys.executable, __file__, "--case", name, *(["--rehearse"] if rehearse else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def summary(found: Mapping[str, Mapping[str, float]], device: str) -> dict[str, Any]:
    """One flat object, the mean ratio first."""
    ratios = {n: case["predicted_gib"] / case["measured_gib"] for n, case in found.items()}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return {
        "ratio": round(mean, 3),
        **{f"ratio_{name}": round(ratio, 3) for name, ratio in ratios.items()},
        **{f"{key}_{name}": round(value, 3) for name, case in found.items()
           for key, value in case.items()},
        "device": device,
        **plan.environment(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, narrow models")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--case", choices=CASES, help="measure this case in this process")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("no GPU here: add --rehearse to try the code on the CPU")
    if options.case:
        sys.stdout.write("\n" + json.dumps(measure_here(options.case, options.rehearse)) + "\n")
        return
    found = {name: measure(name, options.rehearse) for name in CASES}
    device = "cpu, rehearsal" if options.rehearse else torch.cuda.get_device_name()
    text = json.dumps(summary(found, device), indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
