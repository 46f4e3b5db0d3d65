"""The tables of docs/scale.md: GPU-hours of PA-SFT, SC-GRPO and studies, and how they grow.

    python bench/costs.py             write them into docs/scale.md
    python bench/costs.py --check     1 if docs/scale.md says something else than the code

Nothing is measured here: `iad_r1/planner/cost.py` predicts from what one H100 was seen to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iad_r1.backbones.shapes import architecture
from iad_r1.command import compose
from iad_r1.planner import cost
from iad_r1.planner.memory import Work
from iad_r1.planner.widths import Architecture, picture

FILE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- bench/costs.py -->", "<!-- end -->"
BACKBONES = ("llava_ov_05b", "qwen2vl_2b", "qwen25vl_3b", "llava_ov_7b", "llava15_7b",
             "qwen25vl_7b", "llava16_8b")  # fmt: skip
SIDE = 672  # pixels of a picture, as in bench/gpu
TEXT, ASKED = 60, 108  # tokens around a picture in PA-SFT and in SC-GRPO
ANSWER, LONGEST = 68, 512  # tokens of a chain of thought in PA-SFT; of a completion, at most
JUDGED = 1000  # pictures of an evaluation, AT_ONCE of them, with answers of SAID tokens
AT_ONCE, SAID = 64, 128
# Expert-AD: 2,920 items twice, 8 a step; 3,000 pictures, 6 a step (recipe=paper)
SFT_STEPS, GRPO_STEPS = 2920 * 2 // 8, 3000 // 6
# What a seed of a study trains: how often PA-SFT and SC-GRPO of its backbone, and how often PA-SFT
# if arms did not share it
STUDIES: Mapping[str, tuple[str, float, float, float]] = {
    "rewards": ("qwen25vl_3b", 1, 6, 6),
    "grid": ("llava_ov_05b", 5, 5, 5),
    "data_share": ("llava_ov_7b", 0.2 + 0.4 + 0.6 + 0.8 + 1, 5, 3),
    "cold_start": ("llava_ov_05b", 1, 2, 1),
    "cot_vs_direct": ("qwen25vl_3b", 2, 0, 2),
    "loss_variants": ("qwen25vl_3b", 1, 5, 5),
    "strict_vs_released": ("qwen25vl_3b", 1, 2, 2),
}
SEEDS = 3
# GPUs, and the bytes a second that each of them sends: NVLink 4 in a node, 400 Gbit/s between nodes
LINKS = (
    ("1 GPU", 1, 450e9),
    ("a node of 8", 8, 450e9),
    ("2 nodes of 8", 16, 50e9),
)


def models() -> dict[str, Architecture]:
    """The published backbones that are trained."""
    made = {name: compose.compose(["stage=plan", f"backbone={name}"]) for name in BACKBONES}
    return {name: architecture(config) for name, config in made.items()}


def sft_work(model: Architecture) -> Work:
    """A step of PA-SFT as in the paper: 8 samples."""
    return Work(8, TEXT, picture(model, SIDE, SIDE, None), 1, 1, ANSWER, "group")


def grpo_work(model: Architecture) -> Work:
    """A step of SC-GRPO as in the paper: 6 prompts with 4 completions."""
    return Work(6, ASKED, picture(model, SIDE, SIDE, None), 1, 4, LONGEST, "group")


def hours(model: Architecture) -> tuple[float, float]:
    """GPU-hours of PA-SFT and of SC-GRPO."""
    return (
        SFT_STEPS * cost.sft(model, sft_work(model)) / 3600,
        GRPO_STEPS * cost.grpo(model, grpo_work(model)) / 3600,
    )


def tables() -> str:
    known = models()
    small, large = known["qwen25vl_3b"], known["qwen25vl_7b"]
    parts = (backbones(known), studies(known), growth(small), spread(large))
    return "\n\n".join("\n".join(part) for part in parts)


def backbones(known: Mapping[str, Architecture]) -> Iterator[str]:
    """A row for each backbone: seconds of a step by part, hours of both stages."""
    yield (
        "| backbone | PA-SFT step, s | sampling, s | reference, s | update, s | PA-SFT, h "
        f"| SC-GRPO, h | {JUDGED:,} pictures, min |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, model in known.items():
        one, work = sft_work(model), grpo_work(model)
        parts = [cost.sft(model, one)]
        parts += [part(model, work) for part in (cost.sampling, cost.reference, cost.update)]
        asked = Work(AT_ONCE, ASKED, work.picture, 1, 1, SAID, "group")
        judged = JUDGED / AT_ONCE * cost.sampling(model, asked) / 60
        cells = " | ".join(f"{value:.1f}" for value in (*parts, *hours(model), judged))
        yield f"| {name} | {cells} |"


def studies(known: Mapping[str, Architecture]) -> Iterator[str]:
    """A row for each study: what it trains, with and without sharing."""
    yield f"| study, {SEEDS} seeds | backbone | PA-SFT | SC-GRPO | GPU-hours | without sharing |"
    yield "|---|---|---|---|---|---|"
    for name, (backbone, sft, grpo, alone) in STUDIES.items():
        first, second = hours(known[backbone])
        shared = SEEDS * (sft * first + grpo * second)
        plain = SEEDS * (alone * first + grpo * second)
        yield (
            f"| {name} | {backbone} | {SEEDS} x {sft:g} | {SEEDS} x {grpo:g} | {shared:.0f} | "
            f"{plain:.0f} |"
        )


def growth(model: Architecture) -> Iterator[str]:
    """What a step of SC-GRPO costs when one thing is doubled."""
    work = grpo_work(model)
    base = cost.grpo(model, work)
    doubled = {
        "prompts_per_step 12": replace(work, groups=12),
        "group_size 8": replace(work, completions=8),
        "max_tokens 1024": replace(work, length=1024),
        "two pictures (one-shot)": replace(work, pictures=2),
        "pictures of 952 x 952": replace(work, picture=picture(model, 952, 952, None)),
    }
    yield "| a step of SC-GRPO, qwen25vl_3b | sampling, s | reference, s | update, s | together |"
    yield "|---|---|---|---|---|"
    for name, changed in {"as in the paper": work, **doubled}.items():
        parts = [part(model, changed) for part in (cost.sampling, cost.reference, cost.update)]
        cells = " | ".join(f"{value:.1f}" for value in parts)
        yield f"| {name} | {cells} | x {sum(parts) / base:.2f} |"


def spread(model: Architecture) -> Iterator[str]:
    """SC-GRPO with eight times the prompts a step, over more and more GPUs: each samples and learns
    its share, and they send each other gradients and weights."""
    yield (
        "| qwen25vl_7b, prompts_per_step 48 | sampling, s | learning, s | sending, s | step, s "
        "| GPU-hours |"
    )
    yield "|---|---|---|---|---|---|"
    whole = replace(grpo_work(model), groups=48)
    steps = 3000 / whole.groups
    for name, gpus, link in LINKS:
        share = replace(whole, groups=whole.groups // gpus)
        learned = cost.reference(model, share) + cost.update(model, share)
        parts = [cost.sampling(model, share), learned, cost.traffic(model, gpus) / link]
        cells = " | ".join(f"{value:.1f}" for value in (*parts, sum(parts)))
        yield f"| {name} | {cells} | {gpus * steps * sum(parts) / 3600:.1f} |"


def page(text: str) -> str:
    """docs/scale.md with the tables as the code has them now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str]) -> int:
    text = FILE.read_text(encoding="utf-8")
    if "--check" in arguments:
        return int(text != page(text))
    FILE.write_text(page(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
