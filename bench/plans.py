"""The table of docs/plans.md: what each backbone needs on 1, 4 and 8 GPUs, and the command to type.

    python bench/plans.py             write docs/plans.md
    python bench/plans.py --check     1 if docs/plans.md says something else than the code

Nothing is measured: every number is what `stage=plan` predicts (`iad_r1/planner/`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from iad_r1.backbones.shapes import architecture
from iad_r1.command import compose
from iad_r1.planner import tables
from iad_r1.planner.fits import Question, StepName, Tuning, recommended, ways_out
from iad_r1.planner.memory import GIB
from iad_r1.settings.config import Config
from iad_r1.stages import plan

FILE = Path(__file__).resolve().parent.parent / "docs" / "plans.md"
BACKBONES = ("llava_ov_05b", "qwen2vl_2b", "qwen25vl_3b", "llava_ov_7b", "llava15_7b",
             "qwen25vl_7b", "llava16_8b")  # fmt: skip
GPUS: Mapping[str, float] = {"H100 80 GB": 79, "H200 141 GB": 139}  # GiB that CUDA says they have
COUNTS = (1, 4, 8)
HEAD = """\
# What fits: the plan of every backbone

**All numbers are predictions.** None has been measured on a GPU. `stage=plan` computes them from
the widths of a model; `docs/speed.md` says how far it was from small models on a CPU. They are the
GiB that a GPU holds at once at most, in bfloat16, in the steps of `recipe=paper`: 8 samples in
PA-SFT, and in SC-GRPO 6 prompts with 4 completions of at most 512 tokens. Pictures have 1024 x 1024
pixels before the processor limits them. {margin:.0%} of a GPU stay free, and {overhead:g} GiB are
for CUDA. An H100 has {small:g} GiB, an H200 {large:g}, and their host 512 for `engine.offload=cpu`.
Attention is counted through SDPA, which needs more than FlashAttention.

A command is the fastest option that is predicted to fit. Add your data to it:
`data=photos data.root=<folder>`. The `init` of SC-GRPO is the run of PA-SFT. SC-GRPO uses no more
GPUs than it has prompts: six of eight, unless `grpo.prompts_per_step` is larger.

Before its weights load, a run predicts its own need, from its own pictures, and compares it with
what is free on each GPU. A run that does not fit is refused, and settings that fit are named.
`memory.check=false` starts it all the same.

`python bench/plans.py` writes this file, and a test compares it with the code.
"""


def page() -> str:
    """The whole file."""
    configs = {name: composed(name) for name in BACKBONES}
    assumed = configs[BACKBONES[0]].memory
    small, large = GPUS.values()
    head = HEAD.format(margin=assumed.margin, overhead=assumed.overhead, small=small, large=large)
    return "\n".join([head, *("\n".join(section(config)) + "\n" for config in configs.values())])


def composed(name: str) -> Config:
    return compose.compose(["stage=plan", f"backbone={name}"])


def section(config: Config) -> Iterator[str]:
    """The table of one backbone, line by line."""
    yield f"## {config.backbone.name}"
    yield ""
    yield f"| step | tuning | GPUs | {' | '.join(GPUS)} |"
    yield "|---|---|---|---|---|"
    model = architecture(config)
    assert isinstance(config.stage, plan.Settings)
    for step, title in tables.TITLES.items():
        for tuning in tables.TUNINGS:
            for count in COUNTS:
                cells = []
                for memory in GPUS.values():
                    changed = {"gpus": count, "gpu_memory": memory}
                    question = plan.ask(config, config.stage.model_copy(update=changed), model)
                    cells.append(cell(config, question, step, tuning))
                yield f"| {title} | {tuning} | {count} | {' | '.join(cells)} |"


def cell(config: Config, question: Question, step: StepName, tuning: Tuning) -> str:
    option = recommended(question, step, tuning)
    if option is None:
        return f"nothing fits. {next(ways_out(question, step, tuning))}"
    words = " ".join(["python run.py", *tables.command(config, option)])
    return f"{option.peak / GIB:.1f}: `{words}`"


def main(arguments: Sequence[str]) -> int:
    if "--check" in arguments:
        return int(FILE.read_text(encoding="utf-8") != page())
    FILE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
