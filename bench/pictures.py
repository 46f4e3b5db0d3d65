"""What a step waits for its pictures: prepared when they are needed, and on threads beside it.

    python bench/pictures.py --quick             six steps without a model's computation, under 45 s
    python bench/pictures.py --json FILE         eight steps of each kind

A picture is a PNG of 1024 x 1024 pixels, opened, turned, resized to 672 x 672 and encoded with its
prompt by the code of a run (`Prompter.encode`); no picture is remembered. A batch has four.
`engine.picture_threads` is 0, or 2.

`device`: in place of learning, the thread sleeps for as long as a batch takes to prepare: a
stand-in for a GPU, which leaves the cores alone. `ratio` is that of its seconds per step; 2 would
hide all the pictures. `cpu`: a batch is learned from by the model of bench/grpo_step.py (8M
parameters, float32) on one CPU thread; its answers have 120 tokens. `alone`: nothing else is done,
so two cores could gain 2.

Seconds are of a step, medians of rounds that take turns; `wait` is the part of them spent on
pictures. Other people's work on the machine lengthens all: `load` says how much there was.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from grpo_step import COMPLETION, Ours, Workload, environment
from PIL import Image, ImageFilter
from rollout import arguments, report

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.data import images
from iad_r1.data.ahead import Ahead
from iad_r1.rollouts.prompting import Prompter
from iad_r1.types import Sample, Solution

SIDE, BATCH, THREADS = 1024, 4, 2


def samples(folder: Path, count: int) -> list[Sample]:
    """Photographs of smooth noise, about 1 MB each."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
        path = folder / f"{number}.png"
        noise.filter(ImageFilter.GaussianBlur(2)).save(path)
        found.append(Sample(path.stem, "noise", "train", "noise", path, Solution("No")))
    return found


def steps(
    make: Callable[[Sample], Prompt],
    batches: Sequence[Sequence[Sample]],
    threads: int,
    work: Callable[[list[Prompt]], None],
) -> tuple[float, float]:
    """(whole seconds, seconds waited for pictures) of each step but the first."""
    whole, waited = [], []
    with Ahead(make, threads) as prompts:
        for batch, then in zip(batches, [*batches[1:], ()], strict=True):
            began = time.perf_counter()
            found = prompts.take(batch, then)
            waited.append(time.perf_counter() - began)
            work(found)
            whole.append(time.perf_counter() - began)
    return median(whole[1:]), median(waited[1:])


def learn(ours: Ours) -> Callable[[list[Prompt]], None]:
    """One optimiser step on four answers."""
    answers = [[group[0]] for group in ours.work.completions]

    def step(prompts: list[Prompt]) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            found = completion_logprobs(ours.model, [prompt.inputs], [answer], entropy=False)
            (-found.logprob.sum() / (BATCH * COMPLETION)).backward()
        ours.optimizer.step()
        ours.optimizer.zero_grad()

    return step


def compare(count: int, rounds: int, with_model: bool) -> dict[str, Any]:
    """Every kind of work with and without threads, in turns."""
    images._REMEMBERED = images._Remembered(limit=0)
    work = Workload(groups=BATCH, size=1)
    make = Prompter(Backbone(work.model, work.processor), "iad_r1_test").encode
    with tempfile.TemporaryDirectory() as folder:
        shown = samples(Path(folder), BATCH * (count + 1))
        batches = [shown[start : start + BATCH] for start in range(0, len(shown), BATCH)]
        one = steps(make, batches, 0, lambda _: None)[0]
        kinds: dict[str, Callable[[list[Prompt]], None]] = {
            "device": lambda _: time.sleep(one),
            "alone": lambda _: None,
        }
        if with_model:
            kinds["cpu"] = learn(Ours(work))
        found = {}
        for kind, do in kinds.items():
            runs = {0: [], THREADS: []}
            for _ in range(rounds):
                for threads, measured in runs.items():
                    measured.append(steps(make, batches, threads, do))
            found[kind] = {}
            for threads, measured in runs.items():
                step, wait = (round(median(values), 4) for values in zip(*measured, strict=True))
                found[kind][f"threads_{threads}"] = {"step": step, "wait": wait}
    return found


def main() -> None:
    options = arguments(__doc__)
    about = environment(options.threads)
    torch.manual_seed(0)
    found = compare(6, 1, False) if options.quick else compare(8, 2, True)
    ratios = {
        kind: round(times["threads_0"]["step"] / times[f"threads_{THREADS}"]["step"], 2)
        for kind, times in found.items()
    }
    report({"ratio": ratios["device"], "ratios": ratios, "seconds": found}, options, about)


if __name__ == "__main__":
    main()
