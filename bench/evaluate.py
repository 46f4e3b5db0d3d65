"""Evaluation: everything given to the sampler at once, beside four requests at a time.

    python bench/evaluate.py --quick             8 pictures, the model of 8M alone, under 45 s
    python bench/evaluate.py --json FILE         96 pictures, both models

The released evaluation sends four requests and waits for the last of them before it sends the next
four. Ours gives the sampler prompts as it has room for them (`Sampler.stream`). Both go through the
same sampler: same weights, prompts, checks, and lengths of answers, ragged as in bench/rollout.py.

Two models, for what batching gains depends on what a step costs. `model_of_8m`: that of
bench/rollout.py, where one CPU thread computes all the time, most of it pictures, which no batching
saves; `ratio` is its. `twin`: the tiny Qwen2.5-VL with small pictures, whose steps cost about the
same whatever their batch.

`whole` is the rest of an evaluation as well: pictures of 1024 x 1024 pixels are read from files and
P(yes) is told. `released` reads four, asks for four, and tells no P(yes). `alone` is what
stage=evaluate rollout=vllm does: two threads read ahead, and vLLM tells P(yes) as it answers.
`beside` is what it did before: transformers prepares the pictures too, and its model says P(yes).
P(yes) is taken where the answer begins, because a random model opens none.

Ratios compare processor time, `wall_ratio` is beside. `prompts_alone` reads all pictures and
prompts for one token each, which both patterns do alike; `decoding_ratio` compares what is left.
Starting the sampler is not counted, but told.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grpo_step import QUESTION, Workload, environment
from PIL import Image
from rollout import Ragged, arguments, lengths, measure, open_sampler, ratios, report

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.data.ahead import Ahead
from iad_r1.loops.evaluate import p_yes
from iad_r1.rollouts.sampling import Choice, Sampling, Seed
from iad_r1.types import Conversation

AT_ONCE = 4  # requests of the released evaluation
ROOM = 64  # completions that the sampler decodes at once when it is given all
WORKERS = 2  # threads that read pictures ahead
AT_START = Choice("", ("Yes", "No"))
SIDE = 56  # pixels of the twin's pictures


def in_fours(sampler: Ragged, prompts: Sequence[Prompt]) -> int:
    """The released pattern; the number of tokens."""
    tokens = 0
    for start in range(0, len(prompts), AT_ONCE):
        part = range(start, min(start + AT_ONCE, len(prompts)))
        tokens += sampler.draw(
            [prompts[number] for number in part], [(number, 0) for number in part]
        )
    return tokens


def streamed(sampler: Ragged, prompts: Sequence[Prompt]) -> int:
    """Ours; the number of tokens."""
    return sampler.draw(prompts, [(number, 0) for number in range(len(prompts))])


def twin(pictures: int) -> tuple[Backbone, list[Prompt]]:
    """The tiny model, and a prompt for each picture of noise."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = Backbone.load(twins.build_twin("qwen25vl_3b", Path(folder) / "twin"))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255, (pictures, SIDE, SIDE, 3), dtype=np.uint8)
    asked = Conversation("{image}" + QUESTION)
    return backbone, [backbone.encode(asked, [Image.fromarray(pixels)]) for pixels in drawn]


def model_of_8m(pictures: int) -> tuple[Backbone, list[Prompt]]:
    """The model of bench/rollout.py, and a prompt for each picture of noise."""
    work = Workload(groups=pictures, size=1)
    return Backbone(work.model.eval(), work.processor), work.prompts()


def compare(backbone: Backbone, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Both patterns on the same sampler, each from empty caches."""
    pictures = len(prompts)
    wanted = lengths(pictures, 1)
    began = time.perf_counter()
    sampler = open_sampler(backbone, wanted, prompts[0], min(pictures, ROOM))
    started = time.perf_counter() - began
    found = {}
    sampler.draw(prompts[:AT_ONCE], [(0, 0)] * min(AT_ONCE, pictures))  # kernels are chosen
    for name, pattern in {"streamed": streamed, "in_fours": in_fours}.items():
        sampler.forget()
        found[name] = measure(lambda pattern=pattern: pattern(sampler, prompts))
    sampler.wanted = np.ones_like(wanted)
    sampler.forget()
    found["prompts_alone"] = measure(lambda: streamed(sampler, prompts))
    sampler.stop()
    decoding = {
        n: c["cpu_seconds"] - found["prompts_alone"]["cpu_seconds"] for n, c in found.items()
    }
    workload = {
        "pictures": pictures,
        "mean_tokens": round(float(wanted.mean()), 1),
        "longest": int(wanted.max()),
        "engine_started_in_seconds": round(started, 1),
    }
    return {
        **ratios(found["in_fours"], found["streamed"]),
        "decoding_ratio": round(decoding["in_fours"] / decoding["streamed"], 2),
        **found,
        "workload": workload,
    }


def whole(backbone: Backbone, folder: Path, pictures: int) -> dict[str, Any]:
    """All of an evaluation, from files to P(yes), in three ways on the same engine."""
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(pictures)]
    for file in files:
        soft = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(soft).resize((1024, 1024)).save(file)
    asked = Conversation("{image}" + QUESTION)

    def read(file: Path) -> Prompt:
        with Image.open(file) as opened:
            return backbone.encode(asked, [backbone.fit(opened.convert("RGB"))], file.name)

    def counted(file: Path) -> Prompt:
        """As a backbone without weights makes it: vLLM prepares the picture."""
        with Image.open(file) as opened:
            picture = backbone.fit(opened.convert("RGB"))
        return Prompt(text, (picture,), {"input_ids": backbone.expanded(text, [picture.size])})

    text = read(files[0]).text
    wanted = lengths(pictures, 1)
    sampler = open_sampler(backbone, wanted, read(files[0]), min(pictures, ROOM))
    sampler.draw([counted(files[0])], [(0, 0)])  # kernels are chosen

    def released() -> int:
        tokens = 0
        for start in range(0, pictures, AT_ONCE):
            part = range(start, min(start + AT_ONCE, pictures))
            prompts = [counted(files[number]) for number in part]
            tokens += sampler.draw(prompts, [(number, 0) for number in part])
        return tokens

    def ours(make: Callable[[Path], Prompt], choice: Choice | None) -> int:
        sampling, given = Sampling(1, int(wanted.max()), 1.0, choice=choice), list[Prompt]()
        with Ahead(make, WORKERS) as ahead:

            def asking() -> Iterator[tuple[Prompt, Seed]]:
                for start in range(0, pictures, AT_ONCE):
                    now, then = start + AT_ONCE, start + 2 * AT_ONCE
                    for prompt in ahead.take(files[start:now], files[now:then]):
                        given.append(prompt)
                        yield prompt, (len(given) - 1, 0)

            found = [(number, group[0]) for number, group in sampler.stream(asking(), sampling)]
        if choice is None:
            for start in range(0, pictures, AT_ONCE):
                part = found[start : start + AT_ONCE]
                asked_for = [given[number] for number, _ in part]
                p_yes(backbone, asked_for, [drawn for _, drawn in part], AT_START)
        else:
            assert all(drawn.choice is not None for _, drawn in found)
        return sum(len(drawn.tokens) for _, drawn in found)

    done = {}
    ways: dict[str, Callable[[], int]] = {
        "alone": lambda: ours(counted, AT_START),
        "released": released,
        "beside": lambda: ours(read, None),
    }
    for name, way in ways.items():
        sampler.forget()
        done[name] = measure(way)
    sampler.stop()
    return {
        "released": ratios(done["released"], done["alone"]),
        "before": ratios(done["beside"], done["alone"]),
        "pictures": pictures,
        "ways": done,
    }


def main() -> None:
    options = arguments(__doc__)
    about = environment(options.threads)
    pictures = 8 if options.quick else 96
    found = {"model_of_8m": compare(*model_of_8m(pictures))}
    with tempfile.TemporaryDirectory() as folder:
        found["whole"] = whole(model_of_8m(1)[0], Path(folder), 8 if options.quick else 40)
    if not options.quick:
        found["twin"] = compare(*twin(pictures))
    report({"ratio": found["model_of_8m"]["ratio"], **found}, options, about)


if __name__ == "__main__":
    main()
