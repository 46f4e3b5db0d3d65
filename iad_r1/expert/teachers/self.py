"""`teacher=self`: the model of a run writes, and only what is right is kept.

    python run.py stage=expert_ad data=<the data> teacher=self init=<run>

Of each picture some answers are drawn, with the prompt and the limits that the run was evaluated
with. The first one whose answer, place and type are those of label and mask, and which passes all
filters, is taken: rejection sampling, as STaR learns from reasoning that led to right answers
(Zelikman et al. 2022, arXiv:2203.14465). The model is shown neither label nor mask.

All that was drawn is in `tries.jsonl`, a line for each picture. A run that goes on draws the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from iad_r1 import schema
from iad_r1.errors import ConfigError
from iad_r1.expert import filters
from iad_r1.expert.teachers import Asked, Draft, Rejection
from iad_r1.judge.predictions import repair
from iad_r1.settings.base import Above0, Count
from iad_r1.settings.config import Config
from iad_r1.settings.expert import ExpertSettings, TeacherSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import find_start
from iad_r1.types import Completion, StopReason

if TYPE_CHECKING:
    from iad_r1.loops.evaluate import Asking

TRIES = "tries.jsonl"


class Settings(TeacherSettings):
    """How often a picture is tried, and how varied the answers are."""

    name: Literal["self"]
    samples: Count
    temperature: Above0


def problems(config: Config) -> Iterator[str]:
    """What a model of a run cannot do."""
    assert isinstance(config.stage, ExpertSettings)
    if config.init is None:
        yield (
            "teacher=self needs the model that writes: that of a run after PA-SFT, "
            "init=outputs/<name>/<timestamp>."
        )
    if config.stage.arms:
        yield (
            "stage.arms=true with teacher=self: a model names places on the grid and types of the "
            "kind that it has learned, and no others. Use stage.arms=false."
        )
    if config.location_format != "words":
        yield (
            f"teacher=self with location_format={config.location_format}: lists have places in "
            "words, and this model writes numbers. Choose one trained with location_format=words."
        )


def require(config: Config) -> None:
    """ConfigError or WeightsError where there are no weights that have learned to answer."""
    start = find_start(str(config.init))
    if start.stage == "pretrain":
        raise ConfigError(
            f"teacher=self, but {start.path} was only pre-trained and cannot answer. Choose a run "
            "after PA-SFT: init=outputs/<name>/<timestamp>."
        )


def announce(config: Config) -> str:
    """Whose model writes."""
    settings = _settings(config)
    return f"self, {settings.samples} tries for each picture by {config.init}"


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, ExpertSettings)
    assert isinstance(config.stage.teacher, Settings)
    return config.stage.teacher


@dataclass(frozen=True)
class Try:
    """One answer to a picture, and the first thing that is wrong with it."""

    text: str
    wrong: Rejection | None


class Self:
    """Draws answers to pictures, and keeps what is right.

    Args:
        judge: the model, its prompt and its sampler.
        settings: how often it tries.
        rules: what is asked of a text.
        seed: of the run.
        file: where all tries are kept, a line for each picture.
        writer: which run's model it is, for the lists.
    """

    def __init__(
        self,
        judge: Asking,
        settings: Settings,
        rules: filters.Rules,
        seed: int,
        file: Path,
        writer: Mapping[str, Any],
    ) -> None:
        self.judge, self.settings, self.rules = judge, settings, rules
        self.seed, self.file = seed, file
        self.writer = writer
        repair(file)
        self.tries = dict(_read(file))

    def write(self, pictures: Iterable[Sequence[Asked]]) -> Iterator[Sequence[Draft | Rejection]]:
        """For each picture the first text that is right, or why none is."""
        source, size = iter(pictures), self.judge.settings.batch_size
        while batch := list(islice(source, size)):
            self._try([one for asked in batch for one in asked if one.sample.id not in self.tries])
            yield from ([_chosen(self.tries[one.sample.id]) for one in asked] for asked in batch)

    def _try(self, wanted: Sequence[Asked]) -> None:
        """Draw answers to some pictures, and keep them on disk with what is wrong."""
        from iad_r1.rollouts.sampling import Sampling

        if not wanted:
            return
        judge, told = self.judge, self.settings
        sampling = Sampling(told.samples, judge.settings.max_tokens, told.temperature)
        prompts = [judge.prompter.encode(asked.sample, shots=0) for asked in wanted]
        seeds = [(self.seed, crc32(asked.sample.id.encode())) for asked in wanted]
        drawn = judge.sampler.generate(prompts, sampling, seeds)
        with self.file.open("a", encoding="utf-8") as lines:
            for asked, group in zip(wanted, drawn, strict=True):
                found = [judged(asked, completion, self.rules) for completion in group]
                self.tries[asked.sample.id] = found
                row = {"id": asked.sample.id, "tries": [asdict(one) for one in found]}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> Mapping[str, Any]:
        """Say of all tries of the run how many were right, and what was wrong with the others."""
        self.judge.close()
        every = [one for tries in self.tries.values() for one in tries]
        wrong = Counter(one.wrong.reason for one in every if one.wrong is not None).most_common()
        right = sum(one.wrong is None for one in every)
        why = ", ".join(f"{reason} {n:,}" for reason, n in wrong)
        print(f"{len(every):,} tries, {right:,} right; wrong: {why or 'none'}", flush=True)
        return {"tries": len(every), "right": right, "wrong": dict(wrong)}


def judged(asked: Asked, drawn: Completion, rules: filters.Rules) -> Try:
    """A completion against label, mask and filters."""
    said = schema.parse(drawn.text, truncated=drawn.stop is StopReason.LENGTH)
    if said.status is not schema.Status.OK:
        return Try(drawn.text, Rejection("schema", str(said.status)))
    draft = _draft(drawn.text)
    wrong = filters.rejections(asked.facts, asked.grid, draft, drawn.text, rules)
    return Try(drawn.text, next(wrong, None))


def _chosen(tries: Sequence[Try]) -> Draft | Rejection:
    """The first text that is right; else what is wrong with most."""
    right = next((one.text for one in tries if one.wrong is None), None)
    if right is not None:
        return _draft(right)
    wrong = Counter(one.wrong.reason for one in tries if one.wrong is not None).most_common()
    found = ", ".join(f"{reason} {n}" for reason, n in wrong)
    return Rejection(wrong[0][0], f"none of {len(tries)} tries is right: {found}")


def _draft(text: str) -> Draft:
    said = schema.parse(text)
    return Draft("", said.think or "", said.type)


def _read(file: Path) -> Iterator[tuple[str, list[Try]]]:
    """What earlier processes have tried."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found = [(one["text"], one["wrong"]) for one in row["tries"]]
            yield row["id"], [Try(text, wrong and Rejection(**wrong)) for text, wrong in found]


def teacher(config: Config, folder: RunFolder) -> Self:
    """The model of `init`, asked as that run was evaluated."""
    # what models need takes seconds to load, and settings are checked without it
    from iad_r1.loops.expert_ad import rules
    from iad_r1.loops.inspector import open_judge

    start = find_start(str(config.init))
    written_by = {"run": "/".join(start.run.path.parts[-2:]), "stage": start.stage}
    judge, tries = open_judge(config), folder.path / TRIES
    return Self(judge, _settings(config), rules(config), config.seed, tries, written_by)
