"""Evaluation: answers to held-out images, graded and kept one line per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from iad_r1 import prompts
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.boxes import Frame
from iad_r1.data import images
from iad_r1.data.ahead import Ahead
from iad_r1.data.marked import marked
from iad_r1.errors import DataError
from iad_r1.judge import averages
from iad_r1.judge.grade import Grader, grade
from iad_r1.judge.predictions import append, read_predictions, repair
from iad_r1.judge.votes import majority
from iad_r1.learn.context import Run
from iad_r1.loops.outside import Outside
from iad_r1.loops.results import Answers, open_grader, result_of, splits, tested
from iad_r1.processes import distributed
from iad_r1.report import tables
from iad_r1.rollouts import open_sampler
from iad_r1.rollouts.colocate.sampler import VllmSampler
from iad_r1.rollouts.parity import compare_inputs
from iad_r1.rollouts.prompting import Prompter, open_prompter
from iad_r1.rollouts.sampling import Choice, Sampler, Sampling, Seed
from iad_r1.settings.config import Config
from iad_r1.settings.evaluate import Evaluate
from iad_r1.store.progress import Bar
from iad_r1.types import Completion, Prediction, Sample

PROBES = 2  # prompts of a split whose pictures are also prepared by transformers, to compare
YES_OR_NO = Choice("<answer>", ("Yes", "No"))


def run(context: Run) -> list[dict[str, Any]]:
    """Answer every chosen split with every number of shots; returns the rows for `results`, last
    the means over several benchmarks.

    A split's answers are in `predictions/<stage>.<split>.<shots>shot.jsonl` as they come; images
    answered there already are not asked again.
    """
    asked = list(jobs(context))
    rows = []
    with (
        context.progress(f"evaluate {context.stage}", sum(len(s) for *_, s in asked)) as bar,
        closing(_Late(context)) as asking,
    ):
        for split, shots, samples in asked:
            path = context.folder.predictions(context.stage, split, shots)
            ask = partial(asking.answers, split=split, shots=shots)
            answered = answer_all(path, samples, ask, bar)
            rows.append(result_of(context.config, context.stage, split, shots, answered))
    return [*rows, *averages.of_results(rows, tested(context.config, context.dataset))]


class _Late:
    """Who is asked, opened when there is something to ask: an engine takes a while to start."""

    def __init__(self, context: Run) -> None:
        self.context = context
        self.opened: Asking | Outside | None = None

    def answers(
        self, samples: Sequence[Sample], split: str, shots: int
    ) -> Iterator[list[Prediction]]:
        if not samples:
            return iter(())
        if self.opened is None:
            self.opened = self._open()
        return self.opened.answers(samples, split=split, shots=shots)

    def _open(self) -> Asking | Outside:
        config = self.context.config
        if self.context.backbone is not None:
            return open_asking(config, self.context.backbone)
        return Outside(config, self.context.folder, partial(graded, open_grader(config)))

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()


def jobs(context: Run) -> Iterator[tuple[str, int, Sequence[Sample]]]:
    """Every chosen split with every number of shots."""
    for split, samples in splits(context.config, context.dataset).items():
        for shots in shots_of(samples, context.config.evaluate):
            yield split, shots, samples


def shots_of(samples: Sequence[Sample], asked: Evaluate) -> Sequence[int]:
    """With how many references a split is asked: without any alone, if that is asked for, where it
    has none."""
    alone = 0 in asked.shots and not any(sample.references for sample in samples)
    return [0] if alone else asked.shots


def answer_all(
    path: Path,
    samples: Sequence[Sample],
    ask: Callable[[Sequence[Sample]], Iterator[list[Prediction]]],
    bar: Bar,
) -> list[Prediction]:
    """The answers for these samples, kept in `path` as they come; what an earlier process answered
    there is not asked again."""
    done = answered_before(path)
    todo = [sample for sample in samples if sample.id not in done]
    bar.advance(len(samples) - len(todo))
    for answers in ask(todo):
        done |= {answer.id: answer for answer in answers}
        if distributed.is_main():
            append(path, answers)
        bar.advance(len(answers))
    return [done[sample.id] for sample in samples]


def answered_before(path: Path) -> dict[str, Prediction]:
    """What an earlier process answered; its file is made whole, to go on with."""
    if distributed.is_main():
        repair(path)
    distributed.barrier()  # nobody reads before the file is whole
    done = read_predictions(path)
    distributed.barrier()  # nobody writes before everybody has read
    return done


def graded(
    grader: Grader,
    sample: Sample,
    drawn: Completion,
    split: str,
    shots: int,
    p_yes: float | None,
    frame: Frame | None = None,
    letters: Mapping[str, float] | None = None,
) -> Prediction:
    """A completion against what is true, the mask of a defect included. `frame`: the coordinates
    in which it writes the place; None: in words. `letters`: as `grade` takes them."""
    mask = images.open_mask(sample) if sample.solution.answer == "Yes" else None
    return grade(
        grader,
        sample,
        drawn,
        split=split,
        shots=shots,
        p_yes=p_yes,
        mask=mask,
        marked=None if frame is None else marked(drawn.text, frame, mask),
        letters=letters,
    )


def open_asking(config: Config, backbone: Backbone) -> Asking:
    """A model to ask, with its weights as they are now."""
    asked = config.evaluate
    prompter = open_prompter(config, backbone, "evaluate")  # before the sampler: it sets the limit
    sampler = open_sampler(config, backbone, asked.batch_size)
    sampler.sync()
    grader, threads = open_grader(config), config.engine.picture_threads
    return Asking(backbone, prompter, sampler, grader, asked, threads, config.seed)


@dataclass(frozen=True)
class Asking:
    """A model, its prompt and how its answers are graded."""

    backbone: Backbone
    prompter: Prompter
    sampler: Sampler
    grader: Grader
    settings: Evaluate
    picture_threads: int
    seed: int
    # splits and shots of which vLLM was seen to prepare the same
    checked: set[tuple[str, int]] = field(default_factory=set)

    def answers(
        self, samples: Sequence[Sample], split: str, shots: int
    ) -> Iterator[list[Prediction]]:
        """Predictions as they are finished, about a batch of every rank at a time: greedy ones, or
        the majority of several samples.

        The sampler is given all of a rank's prompts, as it has room for them, and goes on with the
        others while a batch is graded. The pictures of the next batch are prepared meanwhile.
        """
        mine, count = distributed.share(samples), self.settings.samples
        size = max(1, self.settings.batch_size // count)
        asked: dict[int, Prompt] = {}  # in flight
        encode, judge = partial(self.prompter.encode, shots=shots), partial(graded, self.grader)

        def ask(prompts: Ahead[Sample, Prompt]) -> Iterator[tuple[Prompt, Seed]]:
            for start in range(0, len(mine), size):
                batch, then = mine[start : start + size], mine[start + size : start + 2 * size]
                for number, prompt in enumerate(prompts.take(batch, then), start):
                    asked[number] = prompt
                    yield prompt, (self.seed, crc32(mine[number].id.encode()), shots)

        temperature = self.settings.temperature if count > 1 else 0.0
        choice = self._choice(mine)
        told = choice if self.alone else None
        sampling = Sampling(count, self.settings.max_tokens, temperature, choice=told)
        if self.alone and (split, shots) not in self.checked:
            self._check_inputs(mine[:PROBES], shots)
            self.checked.add((split, shots))
        with Ahead(encode, self.picture_threads) as prompts:
            finished = self.sampler.stream(ask(prompts), sampling)
            for _ in range(math.ceil(len(samples) / (size * distributed.world()))):
                batch = [
                    (mine[n], prompt, drawn)
                    for n, group in islice(finished, size)
                    for prompt in [asked.pop(n)]
                    for drawn in group
                ]
                shares, letters = self._p_yes(batch), self._letters(batch, choice)
                answers = [
                    judge(sample, drawn, split, shots, shares.get(n), self.prompter.frame(sample),
                          letters.get(n))
                    for n, (sample, _, drawn) in enumerate(batch)
                ]  # fmt: skip
                if count > 1:
                    starts = range(0, len(answers), count)
                    answers = [majority(answers[start : start + count]) for start in starts]
                yield [answer for part in distributed.everyone(answers) for answer in part]

    def close(self) -> None:
        """Give back what the sampler holds."""
        self.sampler.close()

    @property
    def alone(self) -> bool:
        """Whether the sampler has the weights for itself, so that it tells P(yes) as well."""
        return self.backbone.folder is not None

    def _check_inputs(self, samples: Sequence[Sample], shots: int) -> None:
        """MismatchError unless vLLM makes of these prompts what transformers' processor does: the
        same tokens, and the same tensors of the pictures. The other prompts go to vLLM alone."""
        assert isinstance(self.sampler, VllmSampler)
        for sample in samples:
            prompt = self.prompter.encode(sample, shots)
            inputs = self.backbone.prepared(prompt.text, prompt.images)
            compare_inputs(self.sampler, replace(prompt, inputs=inputs))

    def _choice(self, samples: Sequence[Sample]) -> Choice | None:
        """What is weighed in the answers: yes and no, or all letters of options; None: nothing.
        DataError if some questions have options whose letters answer, and others have none."""
        asked = [sample for sample in samples if sample.question.options is not None]
        if not asked or self.settings.choices == "text":
            return YES_OR_NO if len(asked) < len(samples) else None
        found = {letter for sample in asked for letter in sample.question.answers}
        starts = {self._before_letter(sample) for sample in asked}
        if len(asked) < len(samples) or len(starts) > 1:
            raise DataError(
                f"evaluate.choices=logprob: {samples[0].dataset} mixes questions with options and "
                "without, or prompts that are answered in tags and without. Use "
                "evaluate.choices=text."
            )
        return Choice(starts.pop(), tuple(sorted(found)))

    def _before_letter(self, sample: Sample) -> str:
        """What a completion says before its letter: nothing, unless its prompt asks for tags."""
        tagged = prompts.form(sample.question.prompt or self.prompter.template) == "tagged"
        return YES_OR_NO.after if tagged else ""

    def _letters(
        self, batch: Sequence[tuple[Sample, Prompt, Completion]], choice: Choice | None
    ) -> dict[int, dict[str, float]]:
        """The probability of each letter by place in the batch, of the questions with options,
        where the likeliest letter answers; empty for a completion that does not come to it."""
        if choice is None or self.settings.choices == "text":
            return {}
        rows = [n for n, (sample, *_) in enumerate(batch) if sample.question.options is not None]
        drawn = [batch[n][2] for n in rows]
        if self.alone:
            weighed = [one.choice for one in drawn]
        else:
            totals = weigh(self.backbone, [batch[n][1] for n in rows], drawn, choice)
            weighed = [None if one is None else one.double().softmax(0).tolist() for one in totals]
        return {
            n: {} if shares is None else _among(choice.words, shares, batch[n][0].question.answers)
            for n, shares in zip(rows, weighed, strict=True)
        }

    def _p_yes(self, batch: Sequence[tuple[Sample, Prompt, Completion]]) -> dict[int, float | None]:
        """P(yes) by place in the batch, of the questions that ask for yes or no."""
        rows = [n for n, (sample, *_) in enumerate(batch) if sample.question.options is None]
        asked, drawn = [batch[n][1] for n in rows], [batch[n][2] for n in rows]
        if self.alone:
            found = [None if one.choice is None else one.choice[0] for one in drawn]
        else:
            found = p_yes(self.backbone, asked, drawn, YES_OR_NO)
        return dict(zip(rows, found, strict=True))


def _among(words: Sequence[str], shares: Sequence[float], own: Sequence[str]) -> dict[str, float]:
    """The probabilities of some words among themselves, given those among more words."""
    found = {word: share for word, share in zip(words, shares, strict=True) if word in own}
    return {word: share / sum(found.values()) for word, share in found.items()}


def p_yes(
    backbone: Backbone,
    asked: Sequence[Prompt],
    drawn: Sequence[Completion],
    choice: Choice = YES_OR_NO,
) -> list[float | None]:
    """P("Yes") against P("No") where the answer is written, given all the model said before;
    None for a completion that opens no answer."""
    totals = weigh(backbone, asked, drawn, choice)
    return [None if one is None else float(one.softmax(0)[0]) for one in totals]


@torch.no_grad()
def weigh(
    backbone: Backbone, asked: Sequence[Prompt], drawn: Sequence[Completion], choice: Choice
) -> list[torch.Tensor | None]:
    """[words] The log-prob of each word of `choice` where a completion comes to it; None for one
    that does not.

    All words are continued from the same text, as a group.
    """
    found = [choice.tokens(backbone, completion.text) for completion in drawn]
    groups = [[(*shared, *word) for word in words] for shared, words in filter(None, found)]
    rows = [i for i, read in enumerate(found) if read]
    told: list[torch.Tensor | None] = [None] * len(drawn)
    if not rows:
        return told
    said = completion_logprobs(
        backbone.model, [asked[i].inputs for i in rows], groups, entropy=False
    )
    totals = (said.logprob * said.mask).sum(1).view(-1, len(choice.words)).cpu()
    for i, of_words in zip(rows, totals, strict=True):
        told[i] = of_words
    return told


def compare(context: Run, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Paired differences between consecutive stages on the same images, for `comparisons`, last the
    means over several benchmarks."""
    rows: list[dict[str, Any]] = []
    for before, after in pairwise(stages):
        for split, shots, _ in jobs(context):
            old, new = (
                list(read_predictions(context.folder.predictions(stage, split, shots)).values())
                for stage in (before, after)
            )
            place = {"from": before, "to": after, "split": split, "shots": shots}
            rows += [{**place, **row} for row in tables.compared(old, new, context.config.seed)]
    return [*rows, *averages.of_comparisons(rows, tested(context.config, context.dataset))]


def answers_of(context: Run, stages: Sequence[str]) -> Answers:
    """All that these stages have answered, by stage, split and number of shots."""
    places = [(stage, split, shots) for stage in stages for split, shots, _ in jobs(context)]
    return {
        place: list(read_predictions(context.folder.predictions(*place)).values())
        for place in places
    }
