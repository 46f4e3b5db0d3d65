"""Memory as `stage=plan` predicts it, beside what training steps take: on the CPU, small models.

    python bench/plan.py --quick               two models, one step each, under a minute
    python bench/plan.py --json FILE           all cases

Each case is a process of its own: a published backbone made narrow, AdamW, and steps of the forward
and backward pass of this project (`completion_logprobs`) on groups of completions with a picture.
Measured is the most that torch holds within a step once the optimiser has its states: weights,
moments, gradients and activations, by the allocator's own account (torch.profiler). Predicted is
the peak of `memory.training` for the same widths. `resident` is the process' growth at its highest
(Linux: VmHWM) before another such step: what the operating system gave for it, the C library's and
oneDNN's buffers included, which no GPU has.

There is no peer here. `ratio` is predicted / measured, the geometric mean over the cases: 1 is a
perfect prediction, below 1 promises too little. `worst` is the largest error of a case, in percent.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText

from bench import record
from iad_r1.backbones import published
from iad_r1.backbones.float32_head import use_float32_head
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.learn.learner import Learner
from iad_r1.learn.lora import linear_layers
from iad_r1.planner import memory
from iad_r1.planner.memory import Lora, Setup, Work
from iad_r1.planner.widths import Architecture, picture, widths_of
from iad_r1.settings.training import Optimiser

MIB = 2**20
IMAGE_TOKEN = 5
ADAMW = Optimiser(
    learning_rate=1e-6, adam_betas=[0.9, 0.98], schedule="constant_with_warmup", warmup_steps=0,
    weight_decay=0.0, max_grad_norm=1.0, save_every=100,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One training step: a published backbone at these widths, and what it carries."""

    backbone: str
    hidden: int
    layers: int
    tower: int  # width of the vision tower
    side: int  # pixels of the (square) picture
    vocab: int = 4096
    groups: int = 1
    completions: int = 4
    length: int = 120
    forwards: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    lora: int = 0  # rank; 0: full tuning
    checkpointing: bool = False
    reference: bool = False

    def setup(self, cuda: bool) -> Setup:
        return Setup(
            precision=self.precision,
            lora=Lora(self.lora) if self.lora else None,
            train=("language",) if self.lora else memory.ALL,
            reference=self.reference,
            checkpointing=self.checkpointing,
            cuda=cuda,
        )


CASES: Mapping[str, Case] = {
    "qwen25vl_13m": Case("qwen25vl_3b", 256, 6, 256, 448),
    "onevision_14m": Case("llava_ov_05b", 256, 8, 256, 384, length=60),
    "qwen25vl_13m_lora": Case("qwen25vl_3b", 256, 6, 256, 448, lora=16),
    "qwen25vl_13m_checkpointing": Case("qwen25vl_3b", 256, 6, 256, 448, checkpointing=True),
    "qwen25vl_13m_two_forwards": Case("qwen25vl_3b", 256, 6, 256, 336, forwards=2, length=60),
    "qwen25vl_13m_sft": Case("qwen25vl_3b", 256, 6, 256, 336, groups=4, completions=1),
    "qwen25vl_13m_bfloat16": Case("qwen25vl_3b", 256, 6, 256, 224, length=40, precision="bfloat16"),
    "qwen25vl_40m_reference": Case("qwen25vl_3b", 512, 8, 384, 224, vocab=16384, reference=True),
    "onevision_80m": Case("llava_ov_05b", 640, 10, 384, 384, vocab=16384, length=30),
}  # fmt: skip
QUICK = ("qwen25vl_13m", "onevision_14m")


# --------------------------------------------------------------------------- the step


def narrow(case: Case) -> Any:
    """The published backbone's classes at the widths of a case, random weights."""
    config = dict(published.read(case.backbone)["config"])
    text = dict(config.get("text_config") or config)
    heads = case.hidden // 64
    text |= {
        "hidden_size": case.hidden,
        "intermediate_size": 3 * case.hidden,
        "num_hidden_layers": case.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "vocab_size": case.vocab,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = dict(config["vision_config"])
    if "depth" in vision:
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [8, 12, 12]}
        vision |= {"depth": case.layers, "hidden_size": case.tower, "num_heads": case.tower // 64}
        vision |= {"intermediate_size": 3 * case.tower, "out_hidden_size": case.hidden}
        vision["fullatt_block_indexes"] = [case.layers - 1]
        config |= text | {"image_token_id": IMAGE_TOKEN}
    else:
        vision |= {"hidden_size": case.tower, "intermediate_size": 3 * case.tower}
        vision |= {"num_hidden_layers": case.layers, "num_attention_heads": case.tower // 64}
        config |= {"text_config": text, "image_token_index": IMAGE_TOKEN}
    config["vision_config"] = vision
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    return AutoModelForImageTextToText.from_config(made, dtype=getattr(torch, case.precision))


def work_of(model: Architecture, case: Case, text: int = 45) -> Work:
    side = picture(model, case.side, case.side, None)
    return Work(case.groups, text, side, 1, case.completions, case.length)


def example(model: Architecture, work: Work, side: int, image: int) -> dict[str, Tensor]:
    """A prompt as the processor would return it: a picture of noise, and words. `image` is the
    token that stands for the picture."""
    ids = torch.tensor([[image] * work.picture.tokens + [10 + i % 100 for i in range(work.text)]])
    vision = model.vision
    if vision.kind.startswith("qwen"):
        rows = math.isqrt(work.picture.patches)
        values = torch.randn(work.picture.patches, vision.inputs)
        grid = torch.tensor([[1, rows, rows]])
        return {"input_ids": ids, "pixel_values": values, "image_grid_thw": grid}
    tile = vision.side * 14 + (6 if vision.side == 27 else 0)  # 384 pixels hold 27 patches
    count = work.picture.patches // (vision.side**2 + vision.class_token)
    found = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, count, 3, tile, tile),
        "image_sizes": torch.tensor([[side, side]]),
    }
    return found | ({"batch_num_images": torch.tensor([1])} if model.max_tiles else {})


class Trainer:
    """Steps of PA-SFT or SC-GRPO on fixed completions, as the loops take them."""

    def __init__(
        self, model: Any, about: Architecture, case: Case, work: Work, device: str = "cpu"
    ) -> None:
        self.case, self.work, self.base = case, work, model
        use_float32_head(model)
        self.model: Any = self._adapted(model) if case.lora else model
        if case.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        self.reference = copy.deepcopy(model).requires_grad_(False) if case.reference else None
        self.model.train()
        self.learner = Learner(self.model, ADAMW, steps=100)
        prompt = example(about, work, case.side, model.config.image_token_id)
        kind = getattr(torch, case.precision)
        moved = {
            k: v.to(device, kind if v.is_floating_point() else None) for k, v in prompt.items()
        }
        self.prompts = [moved] * work.groups
        rows = [[20 + (i + g) % 100 for i in range(work.length)] for g in range(work.completions)]
        self.rows = [rows] * work.groups

    def _adapted(self, model: Any) -> Any:
        settings = LoraConfig(r=self.case.lora, target_modules=linear_layers(model, ["language"]))
        return get_peft_model(model, settings)

    def step(self) -> None:
        """Reference, forward, backward, clipping, update."""
        grpo = self.case.completions > 1
        for _ in range(self.case.forwards):
            kept = self._reference_logprobs()
            found = completion_logprobs(self.model, self.prompts, self.rows, entropy=grpo)
            apart = 0.0 if kept is None else (kept - found.logprob).square()
            self.learner.backward(((found.logprob * -0.5 + apart) * found.mask).sum(), "bench")
        self.learner.update("bench")

    def standing(self) -> int:
        """Bytes of weights, reference and optimiser states: all that is there between steps."""
        held = [*self.model.parameters(), *(self.reference.parameters() if self.reference else ())]
        held += [master for _, master in self.learner.masters]
        held += [value for state in self.learner.adam.state.values() for value in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    @torch.no_grad()
    def _reference_logprobs(self) -> Tensor | None:
        if self.reference is None:
            return None
        found = completion_logprobs(self.reference, self.prompts, self.rows, entropy=False)
        return found.logprob


# --------------------------------------------------------------------------- measuring


def resident(kind: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` the most since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{kind}:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit(f"/proc/self/status has no {kind}; this benchmark needs Linux")
    return int(found.group(1)) * 1024


def settle() -> None:
    """Give freed pages back, so that what is resident is what is used."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_of(action: Callable[[], None]) -> int:
    """The most that is resident while `action` runs."""
    settle()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    action()
    return resident("VmHWM")


def allocated(action: Callable[[], Any]) -> int:
    """The most bytes torch's CPU allocator holds at once for `action`, beside what it held."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        action()
    assert log.profiler is not None and log.profiler.kineto_results is not None
    events: list[Any] = [e for e in log.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure_here(case: Case) -> dict[str, float]:
    """One case in this process: predicted and measured MiB. A first, tiny model is trained before
    the count starts, so that what libraries allocate once is not counted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = Case(case.backbone, 64, 2, 64, 112 if "qwen" in case.backbone else 384, length=8)
    _trainer(small).step()
    settle()
    before = resident("VmRSS")
    trainer = _trainer(case)
    trainer.step()
    grown = peak_of(trainer.step) - before
    measured = trainer.standing() + allocated(trainer.step)
    about = widths_of(trainer.base.config.to_dict())
    predicted = memory.training(
        about,
        trainer.work,
        case.setup(cuda=False),
        forwards=case.forwards,
        entropy=case.completions > 1,
    )
    return {
        "predicted_mib": round(predicted.peak / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "resident_mib": round(grown / MIB, 1),
        "parameters": about.parameters,
    }


def _trainer(case: Case) -> Trainer:
    model = narrow(case)
    about = widths_of(model.config.to_dict())
    return Trainer(model, about, case, work_of(about, case))


def measure(name: str) -> dict[str, Any]:
    """`measure_here` in a process of its own."""
    command = [sys.executable, __file__, "--case", name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    found = json.loads(run.stdout.splitlines()[-1])
    ratio = found["predicted_mib"] / found["measured_mib"]
    return {"ratio": round(ratio, 3), **found, **asdict(CASES[name])}


def summary(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One flat object: the mean ratio first, then each case's, then the measurements."""
    ratios = {name: case["ratio"] for name, case in found.items()}
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    worst = max(abs(ratio - 1) for ratio in ratios.values())
    return {
        "ratio": round(mean, 3),
        "worst": round(100 * worst, 1),
        **{f"ratio_{name}": ratio for name, ratio in ratios.items()},
        **{f"{key}_{name}": case[key] for name, case in found.items()
           for key in ("predicted_mib", "measured_mib", "resident_mib", "parameters")},
        **record.environment(),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(QUICK)}")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"),
                        help="write the numbers to this file too")  # fmt: skip
    parser.add_argument("--case", choices=CASES, help="measure this case in this process")
    options = parser.parse_args(arguments)
    if options.case:
        sys.stdout.write("\n" + json.dumps(measure_here(CASES[options.case])) + "\n")
        return
    found = {name: measure(name) for name in (QUICK if options.quick else CASES)}
    text = json.dumps(summary(found), indent=2)
    if options.json and options.json != Path("-"):
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
