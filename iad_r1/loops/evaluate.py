"""Evaluation: greedy answers on held-out images, judged strictly, kept one line per image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

import torch

from iad_r1 import grid, schema
from iad_r1.backbones.backbone import Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.judge import rates as metrics
from iad_r1.judge.predictions import append, read_predictions, repair
from iad_r1.loops.context import Context
from iad_r1.processes import distributed
from iad_r1.prompts import form as released_form
from iad_r1.rewards import Vocabulary, vocabulary
from iad_r1.rollouts import open_engine
from iad_r1.rollouts.prompting import Prompter, Room, shown
from iad_r1.rollouts.sampling import Sampling, Seed
from iad_r1.settings.config import Config
from iad_r1.types import Completion, Prediction, Sample, StopReason

ANSWER = "<answer>"
HEADLINE = ("balanced_accuracy", "location_accuracy", "type_accuracy", "well_formed")


def run(context: Context) -> list[dict[str, Any]]:
    """Answer every chosen split with every number of shots; returns the rows for `results`.

    A split's answers are in `predictions/<stage>.<split>.<shots>shot.jsonl` as they come; images
    answered there already are not asked again.
    """
    jobs = [
        (name, shots, samples)
        for name, samples in splits(context).items()
        for shots in context.config.evaluate.shots
    ]
    asking = _Asking(context)
    rows = []
    with context.progress(f"evaluate {context.stage}", sum(len(s) for *_, s in jobs)) as bar:
        for split, shots, samples in jobs:
            path = context.folder.predictions(context.stage, split, shots)
            if distributed.is_main():
                repair(path)
            distributed.barrier()  # nobody reads before the file is whole
            done = read_predictions(path)
            todo = [sample for sample in samples if sample.id not in done]
            bar.advance(len(samples) - len(todo))
            distributed.barrier()  # nobody writes before everybody has read
            for answers in asking.answers(todo, split, shots):
                done |= {answer.id: answer for answer in answers}
                if distributed.is_main():
                    append(path, answers)
                bar.advance(len(answers))
            answered = [done[sample.id] for sample in samples]
            rows.append(result(context, split, shots, answered))
    asking.engine.close()
    return rows


def splits(context: Context) -> dict[str, Sequence[Sample]]:
    """The samples to judge, by split name; validation splits are named `validation_<name>`."""
    config, dataset = context.config.evaluate, context.dataset
    found: dict[str, Sequence[Sample]] = {}
    if "validation" in config.splits:
        found |= {f"validation_{name}": s for name, s in dataset.validation.items()}
    if "test" in config.splits:
        found |= dict(dataset.test)
    return {name: samples[: config.limit] for name, samples in found.items() if samples}


def result(
    context: Context, split: str, shots: int, answered: Sequence[Prediction]
) -> dict[str, Any]:
    """One row of `results` in summary.json, percentages 0-100."""
    found = metrics.summarise(answered, context.config.seed)
    return {
        "stage": context.stage,
        "dataset": context.dataset.name,
        "split": split,
        "shots": shots,
        "n": found.pop("n"),
        **{name: found.pop(name) for name in HEADLINE},
        "ci95": found.pop("ci95"),
        **found,
    }


class _Asking:
    """The model, its prompt and how its answers are judged."""

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config
        asked = self.config.evaluate
        room = Room("evaluate.max_length", asked.max_length, asked.max_tokens)
        self.prompter = Prompter(context.backbone, asked.prompt, room)
        self.engine = open_engine(self.config, context.backbone, self.config.evaluate.batch_size)
        self.engine.sync()

    def answers(
        self, samples: Sequence[Sample], split: str, shots: int
    ) -> Iterator[list[Prediction]]:
        """Greedy predictions as they are finished, about a batch of every rank at a time.

        The engine is given all of a rank's prompts, as it has room for them, and goes on with the
        others while a batch is judged.
        """
        mine, size = distributed.share(samples), self.config.evaluate.batch_size
        sampling = Sampling(1, self.config.evaluate.max_tokens, temperature=0.0)
        asked: dict[int, Prompt] = {}  # in flight

        def ask() -> Iterator[tuple[Prompt, Seed]]:
            for number, sample in enumerate(mine):
                asked[number] = self.prompter.encode(sample, shots)
                yield asked[number], ()

        finished = self.engine.stream(ask(), sampling)
        for _ in range(math.ceil(len(samples) / (size * distributed.world()))):
            batch = [(n, asked.pop(n), group[0]) for n, group in islice(finished, size)]
            p_yes = self.p_yes([prompt for _, prompt, _ in batch], [drawn for *_, drawn in batch])
            answers = [
                judge(mine[n], split, shots, drawn, p, self.config)
                for (n, _, drawn), p in zip(batch, p_yes, strict=True)
            ]
            yield [answer for part in distributed.everyone(answers) for answer in part]

    @torch.no_grad()
    def p_yes(self, prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> list[float | None]:
        """P("Yes") against P("No") where the answer is written, given all the model said before;
        None for a completion that opens no answer.

        Both words are continued from the same text, as a group of two.
        """
        backbone = self.context.backbone
        cut = [completion.text.find(ANSWER) for completion in drawn]
        rows = [i for i, at in enumerate(cut) if at >= 0]
        if not rows:
            return [None] * len(drawn)
        before = [drawn[i].text[: cut[i] + len(ANSWER)] for i in rows]
        pairs = [
            [backbone.encode_target(text + word).tokens[:-1] for word in ("Yes", "No")]
            for text in before
        ]
        found = completion_logprobs(
            self.context.model, [prompts[i].inputs for i in rows], pairs, entropy=False
        )
        totals = (found.logprob * found.mask).sum(1).view(-1, 2)
        shares: list[float | None] = [None] * len(drawn)
        for i, share in zip(rows, torch.softmax(totals, 1)[:, 0].tolist(), strict=True):
            shares[i] = share
        return shares


def judge(
    sample: Sample,
    split: str,
    shots: int,
    completion: Completion,
    p_yes: float | None,
    config: Config,
) -> Prediction:
    """What was said against what is true.

    The place is right when it names exactly the annotated cells; the type when the vocabulary puts
    it into the same class (`same_class`), or the words are equal.
    """
    truncated = completion.stop is StopReason.LENGTH
    parsed = schema.parse(completion.text, truncated=truncated)
    gold = sample.solution
    names = vocabulary(config.rewards.vocabulary or "default")
    return Prediction(
        id=sample.id,
        dataset=sample.dataset,
        split=split,
        product=sample.product,
        shots=shots,
        gold_answer=gold.answer.lower(),
        gold_location=gold.location,
        gold_type=gold.type,
        completion=completion.text,
        status=str(parsed.status),
        answer=schema.judge(
            completion.text,
            config.evaluate.evaluator,
            form=released_form(config.evaluate.prompt),
            truncated=truncated,
        ),
        location=parsed.location,
        type=parsed.type,
        location_correct=_same_place(parsed.location, gold.location, config),
        type_correct=_same_class(parsed.type, gold.type, names),
        p_yes=p_yes,
        n_tokens=len(completion.tokens),
        stop=str(completion.stop),
        references=tuple(reference.id for reference in shown(sample, shots)[:-1]),
    )


def _same_place(said: str | None, true: str | None, config: Config) -> bool | None:
    if true is None:
        return None
    return said is not None and grid.location_score(said, true, grid.as_grid(config.grid)) == 1


def _same_class(said: str | None, true: str | None, names: Vocabulary) -> bool | None:
    if true is None:
        return None
    return said is not None and names.score(said, true) >= names.scores.same_class


def compare(context: Context, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Paired differences between consecutive stages on the same images, for `comparisons`."""
    rows = []
    for before, after in pairwise(stages):
        for split in splits(context):
            for shots in context.config.evaluate.shots:
                rows += _compared(context, before, after, split, shots)
    return rows


def _compared(
    context: Context, before: str, after: str, split: str, shots: int
) -> Iterator[Mapping[str, Any]]:
    old, new = (
        list(read_predictions(context.folder.predictions(stage, split, shots)).values())
        for stage in (before, after)
    )
    for metric in HEADLINE:
        found = metrics.paired_difference(old, new, metric, context.config.seed)
        yield {"from": before, "to": after, "split": split, "shots": shots, "metric": metric,
               **found}  # fmt: skip
