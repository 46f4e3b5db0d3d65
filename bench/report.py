"""The report of many predictions: seconds, and the size of the page.

    python bench/report.py --quick              1,000 predictions, seconds
    python bench/report.py --json FILE          10,000 predictions

The run folder is made up: three stages that have judged as many pictures with and without a
reference, with scores, places, types and reasoning, 48 stored pictures of noise (384 pixels, which
compress badly) with masks, and 2,000 logged steps of SC-GRPO. A process of its own reads it and
writes `report.html`, the figures (SVG and PNG) and tables, as `python run.py stage=report` does.

`ratio` is the limit of 20 seconds ÷ the wall-clock seconds of that process, imports and all;
`size_ratio` the limit of 15 MB ÷ the size of the page. Both limits are for 10,000 predictions.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import REPOSITORY, environment, write

from iad_r1.grid import Grid, words
from iad_r1.report import gallery
from iad_r1.types import Prediction, Sample, Solution

SECONDS, MEGABYTES = 20.0, 15.0
STAGES, SHOTS, PRODUCTS = ("base", "sft", "grpo"), (0, 1), 15
STORED, STEPS = 48, 2000
GRID = Grid(3, 3)
TYPES = ("scratch", "dent", "stain", "hole")
CONFIG = {
    "name": "bench", "seed": 0, "stage": {"name": "pipeline"}, "backbone": {"name": "made"},
    "benchmark": {"made": {}}, "grid": {"name": "3x3", "rows": 3, "cols": 3},
    "evaluate": {"at_miss": 5.0, "at_overkill": 5.0},
}  # fmt: skip
PROGRAM = "import pathlib, sys; from iad_r1 import report; report.build(pathlib.Path(sys.argv[1]))"


def answered(rng: np.random.Generator, number: int, stage: str, shots: int) -> Prediction:
    """A made-up answer, more often right the later the stage."""
    defective = number % 2 == 0
    right = rng.random() < 0.55 + 0.15 * STAGES.index(stage)
    said = defective == right
    place, kind = words(number % GRID.cells, GRID), TYPES[number % len(TYPES)]
    named = words(int(rng.integers(GRID.cells)), GRID)
    thoughts = "The surface is even, and then there is a dark mark across it. " * 4
    tags = f"<location>{named}</location><type>{kind}</type>" if said else ""
    answer = "yes" if said else "no"
    return Prediction(
        id=f"made/{number:06d}", dataset="made", split="made",
        product=f"product {number % PRODUCTS}", shots=shots,
        gold_answer="yes" if defective else "no", gold_location=place if defective else None,
        gold_type=kind if defective else None,
        completion=f"<think>{thoughts}</think>{tags}<answer>{answer.capitalize()}</answer>",
        status="ok", answer=answer, location=named if said else None,
        type=kind if said else None,
        location_correct=said and named == place if defective else None,
        type_correct=said if defective else None, n_tokens=90, stop="stop",
        p_yes=float(np.clip(rng.normal(0.7 if said else 0.3, 0.15), 0, 1)),
    )  # fmt: skip


def samples(rng: np.random.Generator, count: int) -> Iterator[Sample]:
    for number in range(count):
        noise = rng.integers(0, 256, (384, 384, 3), dtype=np.uint8)
        answer = Solution("Yes" if number % 2 == 0 else "No")
        mask = Image.new("L", (384, 384))
        mask.paste(255, (100, 120, 180, 160))
        yield Sample(
            f"made/{number:06d}", "made", "made", f"product {number % PRODUCTS}",
            Image.fromarray(noise), answer, mask if answer.answer == "Yes" else None,
        )  # fmt: skip


def make_run(folder: Path, predictions: int) -> int:
    """A run folder with about so many predictions; returns how many."""
    rng = np.random.default_rng(0)
    (folder / "predictions").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    each = predictions // (len(STAGES) * len(SHOTS))
    for stage in STAGES:
        for shots in SHOTS:
            rows = (answered(rng, number, stage, shots) for number in range(each))
            file = folder / "predictions" / f"{stage}.made.{shots}shot.jsonl"
            file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    gallery.save(folder, list(samples(rng, min(STORED, each))), STORED)
    names = ("reward", "reward_answer", "reward_location", "kl", "loss", "length_mean", "yes_rate",
             "clip_share", "grad_norm", "seconds_step")  # fmt: skip
    steps = (
        {"stage": "grpo", "step": step, **dict(zip(names, rng.random(len(names)), strict=True))}
        for step in range(STEPS)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return each * len(STAGES) * len(SHOTS)


def measure(predictions: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        count = make_run(folder, predictions)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], cwd=REPOSITORY, check=True)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = (folder / "report.html").stat().st_size / 1e6
        figures = list((folder / "figures").glob("*.*"))
        assert {file.suffix for file in figures} == {".svg", ".png"}
        return {
            "ratio": round(SECONDS / seconds, 2),
            "size_ratio": round(MEGABYTES / size, 2),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
            "page_megabytes": round(size, 2),
            "figures_megabytes": round(sum(file.stat().st_size for file in figures) / 1e6, 2),
            "peak_memory_mib": round(used.ru_maxrss / 1024),
            "workload": {"predictions": count, "pictures": STORED, "figures": len(figures) // 2},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 predictions, seconds")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    found = {**measure(1_000 if options.quick else 10_000), "environment": environment()}
    if options.json:
        write(options.json, found["ratio"], found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
