"""The gate between sampler and trainer: are both running the same weights on the same prompt?

On a few fixed prompts it compares what reaches both sides (expanded token ids, pictures' tensors),
the weights the sampler holds (sums of elements), and what both say of the same completions. Then it
changes a vision weight in the sampler alone, which has to show. Every fault that other trainers
shipped here (`tests/engines/test_faults.py`) fails one of these. A failure ends the run with
one message: the number, its limit, and the likely cause, found by trying remedies.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import Packing, completion_logprobs
from iad_r1.errors import MismatchError
from iad_r1.processes import distributed
from iad_r1.rollouts.colocate.sampler import VllmSampler, check_ids
from iad_r1.rollouts.gap import Gap, Limits, limits
from iad_r1.rollouts.sampling import Sampling
from iad_r1.rollouts.server.sampler import ServerSampler
from iad_r1.settings.rollout import Parity
from iad_r1.settings.training import GapLimit
from iad_r1.types import Completion

SUM_LIMIT = 1e-6  # of |sum|: the same numbers, added in the same precision
GROUP = 2  # completions of each probe: the second finds the first one's prompt in the cache
TILES = "image_num_patches"  # of a picture that InternVL's processor cuts up
TOWER = ("visual.", "vision_tower.", "vision_model.")
Completions = list[list[Completion]]
OwnWeights = VllmSampler | ServerSampler
"""Samplers that hold weights of their own."""


@dataclass(frozen=True)
class Row:
    """One check, as a line of `parity.csv`. Gaps are in nats.

    `mean` and `high` (95 % quantile) of the gaps between sampler and trainer are what the limits
    hold for, `gap` is the largest. `shown` is the mean after a vision weight was changed in the
    sampler alone, which has to stand out; `sums` the largest relative difference between
    weights that were sent and weights that the sampler holds, over `weights` parameters that can be
    read there.
    """

    stage: str
    step: int
    probes: int
    tokens: int
    mean: float
    mean_limit: float
    high: float
    high_limit: float
    gap: float
    shown: float
    sums: float
    weights: int
    seconds: float


class Gate:
    """Compares a sampler with the model it was synchronised with.

    Args:
        sampler: synchronised; it is so again after every check.
        backbone: the trainer's side.
        probes: prompts, the same at every check.
        settings: how many tokens, and how often.
        limit: of the gaps.
        temperature: the run's own, so that what is compared is what is trained.
        packing: of the trainer's forward.
        path: of `parity.csv`; None keeps no history. Written by rank 0.
    """

    def __init__(
        self,
        sampler: OwnWeights,
        backbone: Backbone,
        probes: Sequence[Prompt],
        settings: Parity,
        limit: GapLimit,
        *,
        temperature: float,
        packing: Packing,
        path: Path | None,
    ) -> None:
        self.sampler, self.backbone, self.probes = sampler, backbone, list(probes)
        self.sampling = Sampling(GROUP, settings.tokens, temperature)
        self.packing: Packing = packing
        self.path = path
        self.every, self._checks = settings.every, 0
        self._limit = limit

    @cached_property
    def limit(self) -> Limits:
        """Read from the weights at the first check: before, a rank may hold parts of them."""
        return limits(self._limit, self.backbone.model)

    def due(self, step: int) -> bool:
        """Whether this step is one to check. The first two of a process always are: an adapter that
        is counted twice after a resume is right at the first, and at the second it is not."""
        return self._checks < 2 or step % self.every == 0

    def check(self, stage: str, step: int) -> Row:
        """All comparisons; every rank calls it at the same place.

        MismatchError with the number and the likely cause if one fails.
        """
        start, where = time.perf_counter(), f"parity gate, {stage} step {step}"
        self._checks += 1
        if distributed.is_main() or not self.sampler.shared:
            for probe in self.probes:
                compare_inputs(self.sampler, probe)
        sums, weights = self.compare_sums(where)
        gap = self.gap()
        if not gap.within(self.limit):
            self.fail(where, gap)
        shown = self.gap_with_changed_vision()
        row = Row(
            stage, step, len(self.probes), self.sampling.max_tokens, gap.mean, self.limit.mean,
            gap.high, self.limit.high, gap.largest, shown, sums, weights,
            time.perf_counter() - start,
        )  # fmt: skip
        if self.path is not None and distributed.is_main():
            append(self.path, row)
        # stale features leave `shown` at the mean gap itself
        least = max(2 * gap.mean, self.limit.mean / 10)
        if not shown > least:
            raise MismatchError(
                f"{where}: a change of a vision weight moves no log-prob of the sampler (mean "
                f"difference {shown:.3g} nats, it should exceed {least:.3g}). Likely cause: "
                "image features or prompts of the old weights are still cached, or vision weights "
                "do not reach the sampler. Use rollout=hf, and report this."
            )
        return row

    def agree(self, prompts: Sequence[Prompt], where: str) -> Gap:
        """`gap` on prompts of a batch in place of the fixed probes, at most as many; every rank
        calls it with prompts of its own, right after the sampler was synchronised.

        MismatchError with the likely cause above the limit.
        """
        probes, self.probes = self.probes, list(prompts[: len(self.probes)])
        try:
            gap = self.gap()
            if not gap.within(self.limit):
                self.fail(where, gap)
        finally:
            self.probes = probes
        return gap

    def gap(self, packing: Packing | None = None) -> Gap:
        """How far sampler and trainer are apart, over the tokens of all ranks."""
        seeds = [(0, index) for index in range(len(self.probes))]
        groups = self.sampler.generate(self.probes, self.sampling, seeds)
        said = self.trainer_logprobs(groups, packing or self.packing)
        return Gap.of(difference(groups, said))

    @torch.no_grad()
    def trainer_logprobs(self, groups: Completions, packing: Packing) -> Tensor:
        """[N, T] what the trainer says of the same tokens."""
        model = self.backbone.model
        was_training = model.training
        model.eval()
        found = completion_logprobs(
            model,
            [probe.inputs for probe in self.probes],
            [[completion.tokens for completion in group] for group in groups],
            packing=packing,
            temperature=self.sampling.temperature,
            suppressed=self.backbone.placeholders,
            entropy=False,
        )
        model.train(was_training)
        return found.logprob

    def compare_sums(self, where: str) -> tuple[float, int]:
        """Largest relative difference between weights sent and held, and how many were compared."""
        sent, held = self.sampler.sums or {}, self.sampler.weight_sums()
        worst, name = 0.0, ""
        for key in sent.keys() & held.keys():
            apart = abs(sent[key] - held[key]) / max(abs(sent[key]), 1.0)
            if not apart <= worst:
                worst, name = apart, key
        if not max(distributed.everyone(worst)) <= SUM_LIMIT:
            raise MismatchError(
                f"{where}: the sampler holds other weights than it was sent: the elements "
                f"of {name or 'a weight on another rank'} add up to {held.get(name, 0):.9g} "
                f"instead of {sent.get(name, 0):.9g}. Likely cause: something put old weights "
                "back, such as a wake-up after sleep. Use rollout.sleep=false, and report this."
            )
        return worst, len(sent.keys() & held.keys())

    def gap_with_changed_vision(self) -> float:
        """Mean gap while the sampler alone has another vision weight."""
        self.sampler.sync(change=_Once())
        found = self.gap().mean
        self.sampler.sync()
        return found

    def fail(self, where: str, gap: Gap) -> None:
        """Raise, with the cause that trying remedies points at. Ranks try the same ones."""
        cause = "none of the usual causes: report this with the versions in manifest.json"
        for name, remedy in self.remedies():
            if remedy().within(self.limit):
                cause = name
                break
        raise MismatchError(
            f"{where}: sampler and trainer disagree {gap.against(self.limit)}: they do not run "
            f"the same policy. Likely cause: {cause}. If every figure is just above its limit and "
            "no cause was found, it is the rounding of your kernels: raise grpo.gap_limit.mean "
            "and grpo.gap_limit.high. Otherwise use rollout=hf."
        )

    def remedies(self) -> list[tuple[str, Callable[[], Gap]]]:
        """Causes, each with a trial of what would remove it and the gap that is left."""

        def after(*actions: Callable[[], Any]) -> Callable[[], Gap]:
            def trial() -> Gap:
                for action in actions:
                    action()
                return self.gap()

            return trial

        sampler = self.sampler
        return [
            ("keys and values of an earlier prompt were used after weights had changed (prefix "
             "cache)", after(sampler.reset_prefix_cache)),
            ("image features of earlier weights were used (encoder cache)",
             after(sampler.reset_encoder_cache, sampler.reset_prefix_cache)),
            ("weights had changed and were not sent to the sampler", after(sampler.sync)),
            ("the trainer's packed forward; use grpo.packing=off", lambda: self.gap("off")),
        ]  # fmt: skip


class _Once:
    """Drowns the first matrix of the vision tower that passes in noise."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        if self.done or tensor.ndim < 2 or not any(part in name for part in TOWER):
            return tensor
        self.done = True
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        return tensor + 4 * noise * tensor.float().std().to(tensor)


def difference(groups: Completions, trainer: Tensor) -> Tensor:
    """[n] |sampler - trainer| of the tokens of all groups."""
    flat = [completion for group in groups for completion in group]
    return torch.cat(
        [
            (torch.tensor(one.logprobs, dtype=torch.float64) - row[: len(one.tokens)]).abs()
            for one, row in zip(flat, trainer.cpu().double(), strict=True)
        ]
    )


# --- what reaches both sides -------------------------------------------------------------------


def compare_inputs(sampler: OwnWeights, probe: Prompt) -> None:
    """MismatchError unless vLLM's processor makes the same ids and picture tensors of a prompt."""
    ids, pictures = sampler.processed(probe)
    check_ids(probe, ids)
    tiles = [int(theirs[TILES]) for theirs in pictures if TILES in theirs]
    for index, theirs in enumerate(pictures):
        for key, value in theirs.items():
            ours = picture_tensor(probe.inputs, key, index, tiles)
            if ours is not None and not same_tensor(ours, value):
                raise MismatchError(
                    f"{probe.name or 'a probe'}: picture {index + 1} reaches trainer and sampler "
                    f"with different {key} ({_shape(ours)} and {_shape(value)}"
                    f"{_apart(ours, value)}). Likely cause: another limit on picture sizes, or "
                    "another image processor, on one side."
                )


def picture_tensor(
    inputs: Mapping[str, Tensor], key: str, index: int, tiles: Sequence[int] = ()
) -> Tensor | None:
    """The trainer's tensor of one picture; None if the trainer has no such input.

    Qwen's processors put the patches of all pictures one after the other, InternVL's the `tiles`
    of each, whose numbers only vLLM's tells; the others have a row for each picture, padded with
    zeros to the most tiles.
    """
    if key not in inputs:
        return None
    grid = inputs.get("image_grid_thw")
    if key.startswith("pixel_values") and grid is not None:
        counts = grid.prod(-1).tolist()
        return inputs[key].split(counts)[index]
    counts = inputs.get("num_patches")
    rows = list(tiles) if counts is None else counts.tolist()
    return inputs[key].split(rows)[index] if rows else inputs[key][index]


def same_tensor(ours: Tensor, theirs: Any) -> bool:
    """Equal bit for bit in vLLM's precision, up to tiles of padding."""
    theirs = torch.as_tensor(theirs)
    if theirs.ndim == ours.ndim and theirs.shape[1:] == ours.shape[1:]:
        rest = ours[len(theirs) :]
        return len(theirs) <= len(ours) and not rest.any() and _equal(ours[: len(theirs)], theirs)
    return theirs.numel() == ours.numel() and _equal(ours.reshape(theirs.shape), theirs)


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.to(theirs.dtype), theirs)


def _shape(value: Any) -> str:
    return "x".join(map(str, torch.as_tensor(value).shape)) or "a number"


def _apart(ours: Tensor, theirs: Any) -> str:
    theirs = torch.as_tensor(theirs)
    if theirs.shape != ours.shape:
        return ""
    return f", up to {(ours.double() - theirs.double()).abs().max().item():.3g} apart"


def append(path: Path, row: Row) -> None:
    """Add a line to `parity.csv`, after a header if it is new."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))
