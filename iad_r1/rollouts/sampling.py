"""How completions are drawn, and the protocol every sampler keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import Protocol

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.types import Completion

Seed = tuple[int, ...]  # of one prompt, e.g. (run seed, step, prompt)


def seed_number(seed: Seed, bits: int) -> int:
    """A number of so many bits for a prompt's seed, the same in every process."""
    digest = hashlib.sha256(repr(tuple(seed)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - bits)


@dataclass(frozen=True)
class Choice:
    """Words that are weighed against one another where a completion first says `after`, given all
    that it said before."""

    after: str
    words: tuple[str, ...]

    def tokens(
        self, backbone: Backbone, text: str
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]] | None:
        """The tokens that all words share, and how each goes on; None if `text` has no `after`.

        Text and word are read together, as a text to learn is.
        """
        at = text.find(self.after)
        if at < 0:
            return None
        before = text[: at + len(self.after)]
        read = [backbone.encode_target(before + word).tokens[:-1] for word in self.words]
        same = takewhile(lambda step: len(set(step)) == 1, zip(*read, strict=False))
        shared = len(list(same))
        return read[0][:shared], [tokens[shared:] for tokens in read]


@dataclass(frozen=True)
class Sampling:
    """Settings of one call.

    Attributes:
        group_size: completions per prompt (G).
        max_tokens: completion limit, the end-of-turn token included.
        temperature: 0 is greedy; then `group_size` must be 1.
        top_p: draw from the fewest tokens that hold this much probability; 1 is off.
        top_k: draw from the k likeliest tokens, before top_p; 0 is off.
        choice: also weigh these words in each completion (`Completion.choice`). vLLM in this
            process does so; other samplers do not.

    The log-probs of a completion are those of what was drawn from, cut off by top_p and top_k.
    """

    group_size: int
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    choice: Choice | None = None

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.group_size != 1:
            raise ValueError(
                f"group_size={self.group_size} at temperature 0 would draw the same completion "
                "again and again; use a temperature above 0"
            )


class Sampler(Protocol):
    """What training, evaluation and prediction ask of a sampler."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Seed]
    ) -> list[list[Completion]]:
        """G completions for each prompt, in the order of the prompts.

        The same weights, prompt and seed give the same completions, whatever else is asked.
        """
        found = sorted(self.stream(zip(prompts, seeds, strict=True), sampling), key=itemgetter(0))
        return [completions for _, completions in found]

    def stream(
        self, asked: Iterable[tuple[Prompt, Seed]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(number of the prompt, its G completions) as they are finished, in any order.

        Prompts are taken from `asked` as the sampler has room for them.
        """
        ...

    def sync(self) -> None:
        """Take over the weights as they are now; every rank calls it at the same place."""
        ...

    def close(self) -> None:
        """Give back memory and processes; the sampler is not used again."""
        ...
