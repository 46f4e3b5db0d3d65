"""Which weights SC-GRPO ends with: the last, or those that answer validation pictures best.

Candidates are the weights before SC-GRPO and those of every checkpoint. Of some dozens of pictures
a greedy verdict tells little, and P(yes) after a greedy reasoning little more, for the reasoning
has decided already. So several answers to each picture are drawn, with the same random numbers for
every candidate, and their share that is right counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import Any
from zlib import crc32

from iad_r1.backbones.backbone import Prompt
from iad_r1.data.ahead import Ahead
from iad_r1.learn.context import Context
from iad_r1.loops.collect import Collector
from iad_r1.loops.results import choosing, yes_no
from iad_r1.processes import distributed
from iad_r1.rollouts.sampling import Seed
from iad_r1.store.manifest import chosen_weights
from iad_r1.types import Sample


def balanced(shares: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, float]:
    """Balanced accuracy of sampled answers (`score`): how likely an answer is right, good and
    defective pictures counted alike; and its `standard_error`, for other pictures would give
    another one. Both in percent.

    shares: of the answers to a picture that are right, 0 to 1, by its id.
    samples: those pictures, good and defective ones.
    """
    sides = [
        [shares[sample.id] for sample in samples if sample.solution.answer == answer]
        for answer in ("Yes", "No")
    ]
    error = math.sqrt(sum(variance(side) / len(side) for side in sides if len(side) > 1)) / 2
    return {"score": 100 * fmean(map(fmean, sides)), "standard_error": 100 * error}


class Chooser:
    """Judges the weights as they are by the validation pictures of a run, asked as SC-GRPO asks.

    Every rank asks its share of the pictures; their answers do not depend on how many ranks there
    are.
    """

    def __init__(self, context: Context, collector: Collector) -> None:
        self.collector, self.seed = collector, context.config.seed
        self.samples = choosing(context.config, context.dataset)
        self.threads = context.config.engine.picture_threads
        self.size = max(1, context.config.rollout.batch_size // collector.sampling.group_size)

    def judge(self) -> dict[str, float]:
        """All ranks call it together, between two steps."""
        collector, mine = self.collector, distributed.share(self.samples)
        shares: dict[str, float] = {}
        with Ahead(collector.prompter.encode, self.threads) as prompts, collector.sampled_from():
            collector.sampler.sync()
            drawn = collector.sampler.stream(self._asked(mine, prompts), collector.sampling)
            for number, group in drawn:
                sample = mine[number]
                right = sample.solution.answer.lower()
                said = [collector.read_answer(completion.text) for completion in group]
                shares[sample.id] = fmean(answer == right for answer in said)
        whole = {id: share for part in distributed.everyone(shares) for id, share in part.items()}
        return balanced(whole, self.samples)

    def _asked(
        self, samples: Sequence[Sample], prompts: Ahead[Sample, Prompt]
    ) -> Iterator[tuple[Prompt, Seed]]:
        for start in range(0, len(samples), self.size):
            batch = samples[start : start + self.size]
            then = samples[start + self.size : start + 2 * self.size]
            for sample, prompt in zip(batch, prompts.take(batch, then), strict=True):
                yield prompt, (self.seed, crc32(sample.id.encode()))


def open_chooser(context: Context, collector: Collector) -> Chooser | None:
    """Who judges the weights of SC-GRPO; None where it ends with its last ones."""
    return Chooser(context, collector) if choosing(context.config, context.dataset) else None


def note_chosen(context: Context, steps: int, best: Mapping[str, Any]) -> None:
    """Say, and write to the manifest under `chosen`, which weights SC-GRPO ended with if it was
    to choose: from `Saver.best`, after `steps` steps."""
    if not context.config.grpo.choose_on_validation or not distributed.is_main():
        return
    found = [s for part in context.dataset.validation.values() for s in yes_no(part)]
    chosen = {
        "step": best["step"] if best["judged"] else steps,
        "steps": steps,
        "pictures": len(found),
        "defective": sum(sample.solution.answer == "Yes" for sample in found),
        "candidates": best["judged"],
    }
    print(chosen_weights(context.folder.update_manifest(chosen=chosen)), flush=True)
