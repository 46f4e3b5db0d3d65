"""The transformers sampler: exact sampler log-probabilities, for tests and small models.

The prompt of a group is computed once, images included, and its key/value cache is repeated for
the G completions. Prompts share a batch only with prompts of the same shape, so nothing is padded
and a completion's log-probability is the one the trainer computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache, TopKLogitsWarper, TopPLogitsWarper

from iad_r1.backbones.backbone import Backbone, Inputs, Prompt
from iad_r1.backbones.packing import next_positions
from iad_r1.rollouts.sampling import Sampling, Seed, seed_number
from iad_r1.types import Completion, StopReason


class HfSampler:
    """Samples from the training weights themselves, so there is nothing to synchronise.

    Args:
        backbone: the model to sample from; its weights are read afresh at every call.
        batch_size: the most completions decoded at once.
    """

    def __init__(self, backbone: Backbone, batch_size: int) -> None:
        self.backbone = backbone
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Seed]
    ) -> list[list[Completion]]:
        """G completions for each prompt, in the order of the prompts (see `Sampler`)."""
        was_training = self.backbone.model.training
        self.backbone.model.eval()
        inputs = [prompt.inputs for prompt in prompts]
        results: list[list[Completion]] = [[] for _ in prompts]
        for batch in self._batches(inputs, sampling.group_size):
            luck = torch.cat([_uniforms(seeds[i], sampling) for i in batch])
            drawn = self._decode([inputs[i] for i in batch], sampling, luck)
            for row, completion in enumerate(drawn):
                results[batch[row // sampling.group_size]].append(completion)
        self.backbone.model.train(was_training)
        return results

    def stream(
        self, asked: Iterable[tuple[Prompt, Seed]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(number of the prompt, its G completions), a batch at a time (see `Sampler`)."""
        numbered = enumerate(asked)
        while batch := list(islice(numbered, max(1, self.batch_size // sampling.group_size))):
            prompts, seeds = zip(*(pair for _, pair in batch), strict=True)
            groups = self.generate(prompts, sampling, seeds)
            yield from ((number, group) for (number, _), group in zip(batch, groups, strict=True))

    def sync(self) -> None:
        """Nothing to do: the weights are the trainer's own."""

    def close(self) -> None:
        """Nothing to give back."""

    def _batches(self, prompts: Sequence[Inputs], group_size: int) -> Iterator[list[int]]:
        by_shape: dict[tuple, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            by_shape[_shape(prompt)].append(index)
        size = max(1, self.batch_size // group_size)
        for same in by_shape.values():
            yield from (same[i : i + size] for i in range(0, len(same), size))

    def _decode(
        self, prompts: list[Inputs], sampling: Sampling, luck: torch.Tensor
    ) -> list[Completion]:
        model = self.backbone.model
        ends = torch.tensor(self.backbone.ends, device=model.device)
        inputs = {
            key: torch.cat([prompt[key] for prompt in prompts]).to(model.device)
            for key in prompts[0]
        }
        cache = DynamicCache(config=model.config.get_text_config())
        position = next_positions(model, prompts).repeat_interleave(sampling.group_size)
        position = position.to(model.device)
        hidden = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = hidden.logits[:, -1].repeat_interleave(sampling.group_size, 0)
        cache.batch_repeat_interleave(sampling.group_size)
        tokens: list[list[int]] = [[] for _ in logits]
        logprobs: list[list[float]] = [[] for _ in logits]
        alive = torch.arange(len(logits), device=model.device)
        luck = luck.to(model.device)
        for step in range(sampling.max_tokens):
            token, logprob = self._draw(logits, sampling, luck[alive, step])
            drawn = alive.tolist(), token.tolist(), logprob.tolist()
            for row, one, likely in zip(*drawn, strict=True):
                tokens[row].append(one)
                logprobs[row].append(likely)
            keep = (~torch.isin(token, ends)).nonzero()[:, 0]
            if not len(keep) or step + 1 == sampling.max_tokens:
                break
            if len(keep) < len(alive):
                alive, token = alive[keep], token[keep]
                cache.batch_select_indices(keep)
            logits = model(
                input_ids=token[:, None],
                position_ids=self._positions(position[alive] + step),
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return list(map(self._completion, tokens, logprobs))

    def _completion(self, tokens: list[int], logprobs: list[float]) -> Completion:
        stop = StopReason.STOP if tokens[-1] in self.backbone.ends else StopReason.LENGTH
        return Completion(self.backbone.decode(tokens), tuple(tokens), tuple(logprobs), stop)

    def _draw(
        self, logits: torch.Tensor, sampling: Sampling, luck: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token per row and its log-prob: the most likely, or the one at quantile `luck`."""
        logits = logits.float()
        logits[:, list(self.backbone.placeholders)] = -torch.inf
        if sampling.temperature == 0:
            logprobs = torch.log_softmax(logits, -1)
            token = logprobs.argmax(-1)
        else:
            logprobs = torch.log_softmax(cut_off(logits / sampling.temperature, sampling), -1)
            below = logprobs.double().exp().cumsum(-1)
            # scaled by the total, so that rounding cannot push a draw past the last token
            token = torch.searchsorted(below, (luck * below[:, -1])[:, None], right=True)[:, 0]
        return token, logprobs.gather(-1, token[:, None])[:, 0]

    def _positions(self, position: torch.Tensor) -> torch.Tensor:
        """[R, 1], or [3, R, 1] for models with time/height/width positions."""
        rope = self.backbone.model.config.get_text_config().rope_parameters
        return position.expand(3, 1, -1).mT if "mrope_section" in rope else position[:, None]


def cut_off(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[R, V] logits with those that top-k, then top-p leave out at minus infinity."""
    unread: Any = torch.empty(0, dtype=torch.long)  # the rules look at the logits alone
    kept: Any = logits  # transformers types these two as the old tensor classes
    if sampling.top_k:
        kept = TopKLogitsWarper(sampling.top_k)(unread, kept)
    if sampling.top_p < 1:
        kept = TopPLogitsWarper(sampling.top_p)(unread, kept)
    return kept


def _uniforms(seed: Seed, sampling: Sampling) -> torch.Tensor:
    """[G, max_tokens] float64 in [0, 1): the random numbers of one prompt."""
    generator = torch.Generator().manual_seed(seed_number(seed, bits=63))
    size = (sampling.group_size, sampling.max_tokens)
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _shape(prompt: Inputs) -> tuple:
    return tuple((key, tuple(value.shape[1:])) for key, value in sorted(prompt.items()))
