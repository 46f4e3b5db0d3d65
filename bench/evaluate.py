"""Evaluation: everything given to the engine at once, beside four requests at a time.

    python bench/evaluate.py --quick             12 pictures, under 45 s
    python bench/evaluate.py --json FILE         96 pictures

The released evaluation sends four requests and waits for the last of them before it sends the next
four. Ours gives the engine prompts as it has room for them (`Engine.stream`). Both go through the
same engine: same weights, prompts, checks, and lengths of answers, ragged as in bench/rollout.py,
whose model this is. `ratio` compares processor time, `wall_ratio` is beside it. Starting the engine
is not counted, but told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from grpo_step import Workload, environment
from rollout import Ragged, arguments, lengths, measure, open_engine, ratios, report

from iad_r1.backbones.backbone import Backbone, Prompt

AT_ONCE = 4  # requests of the released evaluation
ROOM = 64  # completions that the engine decodes at once when it is given all


def in_fours(engine: Ragged, prompts: Sequence[Prompt]) -> int:
    """The released pattern; the number of tokens."""
    tokens = 0
    for start in range(0, len(prompts), AT_ONCE):
        part = range(start, min(start + AT_ONCE, len(prompts)))
        tokens += engine.draw(
            [prompts[number] for number in part], [(number, 0) for number in part]
        )
    return tokens


def streamed(engine: Ragged, prompts: Sequence[Prompt]) -> int:
    """Ours; the number of tokens."""
    return engine.draw(prompts, [(number, 0) for number in range(len(prompts))])


def compare(pictures: int) -> dict[str, Any]:
    """Both patterns on the same engine, each from empty caches."""
    work, wanted = Workload(groups=pictures, size=1), lengths(pictures, 1)
    backbone, prompts = Backbone(work.model.eval(), work.processor), work.prompts()
    began = time.perf_counter()
    engine = open_engine(backbone, wanted, prompts[0], min(pictures, ROOM))
    started = time.perf_counter() - began
    found = {}
    engine.draw(prompts[:AT_ONCE], [(0, 0)] * min(AT_ONCE, pictures))  # kernels are chosen
    for name, pattern in {"streamed": streamed, "in_fours": in_fours}.items():
        engine.forget()
        found[name] = measure(lambda pattern=pattern: pattern(engine, prompts))
    engine.stop()
    workload = {
        "pictures": pictures,
        "mean_tokens": round(float(wanted.mean()), 1),
        "longest": int(wanted.max()),
        "engine_started_in_seconds": round(started, 1),
    }
    return {**ratios(found["in_fours"], found["streamed"]), **found, "workload": workload}


def main() -> None:
    options = arguments(__doc__)
    about = environment(options.threads)
    report(compare(12 if options.quick else 96), options, about)


if __name__ == "__main__":
    main()
