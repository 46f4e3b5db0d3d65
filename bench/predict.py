"""Verdicts on photographs, beside a plain loop over transformers' `generate`.

    python bench/predict.py --quick             9 photographs, under 45 s
    python bench/predict.py --json FILE         65 photographs
    python bench/predict.py --run FOLDER        with the weights of a run, which does answer

Ours is `Inspector.inspect_all`, with its default batches. The loop opens a photograph, prepares it
with the same processor, calls `generate` greedily, decodes, and takes the next one. Both have the
same weights, prompt and limits, and must say the same words. Without a run the weights are those
of a random twin of Qwen2.5-VL-3B (`weights=tiny`): it writes no answer, so P(yes), which the loop
does not tell, costs ours nothing; with a run it does.

`ratio` compares processor time, `wall_ratio` is beside. `first_verdict_seconds` is that of a
process that has loaded its model and has judged nothing yet.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import environment
from rollout import report

from iad_r1 import Inspector, prompts
from iad_r1.backbones.backbone import Backbone
from iad_r1.loops.evaluate import Asking

SIZE = (448, 336)  # pixels of a photograph
RANDOM = ("Qwen/Qwen2.5-VL-3B-Instruct", "weights=tiny")


def photographs(folder: Path, count: int) -> list[Path]:
    """Files of smooth noise, as JPEG."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:03d}.jpg")
    return sorted(folder.iterdir())


@torch.no_grad()
def plain(backbone: Backbone, prompt: str, tokens: int, files: Sequence[Path]) -> Iterator[str]:
    """What one writes without this project."""
    conversation = prompts.conversation(prompt)
    parts = conversation.text.split("{image}")
    content: list[dict[str, str]] = [{"type": "text", "text": parts[0]}] if parts[0] else []
    content += [{"type": "image"}, {"type": "text", "text": parts[1]}]
    text = backbone.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    for file in files:
        with Image.open(file) as picture:
            inputs = backbone.processor(
                text=[text], images=[picture.convert("RGB")], return_tensors="pt"
            )
        start = inputs["input_ids"].shape[1]
        found = backbone.model.generate(
            **inputs.to(backbone.device),
            do_sample=False,
            max_new_tokens=tokens,
            suppress_tokens=list(backbone.placeholders),
        )
        yield backbone.decode(found[0, start:].tolist())


def compare(files: Sequence[Path], *settings: str) -> dict[str, Any]:
    """Both on the same photographs, after one that is not counted."""
    inspector = Inspector(*settings)
    began = time.perf_counter()
    inspector.inspect(files[0])
    first = time.perf_counter() - began
    asked = inspector.config.evaluate
    assert isinstance(inspector.judge, Asking)
    loop = (inspector.judge.backbone, asked.prompt, asked.max_tokens)
    list(plain(*loop, files[:1]))
    sides, words = {}, {}
    for name in ("inspector", "generate_one_at_a_time"):
        wall, cpu = time.perf_counter(), time.process_time()
        if name == "inspector":
            words[name] = [found.completion for found in inspector.inspect_all(files[1:])]
        else:
            words[name] = list(plain(*loop, files[1:]))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        sides[name] = {
            "seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "pictures_per_second": round((len(files) - 1) / wall, 1),
        }
    ours, peer = words.values()
    alike = sum(a == b for a, b in zip(ours, peer, strict=True))
    assert alike >= 0.9 * len(ours), f"{alike} of {len(ours)} answers are the same words"
    costs = [sides[name] for name in ("generate_one_at_a_time", "inspector")]
    return {
        "ratio": round(costs[0]["cpu_seconds"] / costs[1]["cpu_seconds"], 2),
        "wall_ratio": round(costs[0]["seconds"] / costs[1]["seconds"], 2),
        "first_verdict_seconds": round(first, 3),
        "model_ready_seconds": round(inspector.seconds, 2),
        **sides,
        "same_words": alike,
        "workload": {"photographs": len(files) - 1, "batch_size": inspector.batch_size},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, under 45 s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, help="a run folder whose weights judge")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = environment(threads=options.threads)
    settings = RANDOM if options.run is None else (str(options.run),)
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), 9 if options.quick else 65)
        report(compare(files, *settings), options, about)


if __name__ == "__main__":
    main()
