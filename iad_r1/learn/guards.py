"""What stops a run that must not go on, and what it leaves behind for whoever looks into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageStat
from torch import Tensor, nn

from iad_r1.backbones.packing import completion_logprobs
from iad_r1.errors import MismatchError, TrainingError
from iad_r1.learn.context import Context
from iad_r1.processes import distributed
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.settings.training import Collapse

Rows = Sequence[Mapping[str, Any]]
SAID = "<answer>Yes"  # whose log-probs have to depend on the picture


@contextmanager
def kept(folder: Path, stage: str, step: int, rows: Callable[[], Rows]) -> Iterator[None]:
    """Inside, an error of training leaves the step's `rows` (prompts, completions, rewards) in
    `failed/<stage>-<step>.parquet`, and its message says so."""
    try:
        yield
    except (TrainingError, MismatchError) as error:
        path = folder / "failed" / f"{stage}-{step:05d}.parquet"
        _write(path, rows())
        raise type(error)(f"{error} What the step was made of is in {path}.") from error


def _write(path: Path, rows: Rows) -> None:
    import pandas

    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".partial{distributed.rank()}")  # several ranks may fail at once
    pandas.DataFrame([dict(row) for row in rows]).to_parquet(partial, index=False)
    partial.replace(path)


class CollapseWatch:
    """Notices a policy that gives one answer whatever it sees, or that has stopped exploring.

    A sign has to hold for `settings.steps` steps in a row. Then it is said once; with
    `settings.stop` the run ends.
    """

    def __init__(self, settings: Collapse) -> None:
        self.settings = settings
        self.lasted: dict[str, int] = {}  # steps in a row, by sign
        self.said: set[str] = set()
        self.recalled = False

    def recall(self, metrics: Path, stage: str, step: int) -> None:
        """Take the count up where a stopped run left it, before `step`; only the first call does
        anything."""
        if self.recalled or not step or not metrics.is_file():
            self.recalled = True
            return
        self.recalled = True
        rows = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
        earlier = [row for row in rows if row["stage"] == stage and row["step"] < step]
        for row in sorted(earlier, key=lambda row: row["step"]):
            self._count(row)
            self.said |= self._over()

    def see(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Look at the metrics of a step. TrainingError if the run is to stop."""
        self._count(values)
        for sign in sorted(self._over() - self.said):
            self.said.add(sign)
            message = f"{stage} step {step}: for {self.settings.steps} steps {sign}."
            if self.settings.stop:
                raise TrainingError(
                    f"{message} The run stops, as {stage}.collapse.stop asks; its checkpoints are "
                    "kept. Try a lower learning rate, a larger grpo.kl_coef, or another reward."
                )
            if distributed.is_main():
                print(f"{message} The run goes on ({stage}.collapse.stop=false).", flush=True)

    def _over(self) -> set[str]:
        return {sign for sign, steps in self.lasted.items() if steps >= self.settings.steps}

    def _count(self, values: Mapping[str, float]) -> None:
        signs = self._signs(values)
        self.lasted = {sign: self.lasted.get(sign, 0) + 1 for sign in signs}

    def _signs(self, values: Mapping[str, float]) -> Iterator[str]:
        limit, truth = self.settings.answer_share, values["gold_yes_rate"]
        no_rate = 1 - values["yes_rate"] - values["invalid_rate"]
        # a batch of nothing but defects may be answered "Yes" throughout
        if values["yes_rate"] > limit >= truth:
            yield f'more than {limit:.0%} of the answers were "Yes", which fewer deserved'
        if no_rate > limit >= 1 - truth:
            yield f'more than {limit:.0%} of the answers were "No", which fewer deserved'
        entropy = values.get("entropy")  # not known when no group had anything to teach
        if entropy is not None and entropy < self.settings.entropy:
            yield f"the entropy was below {self.settings.entropy:g} nats per token"


# --- what a stage is trained on, and what it leaves alone -----------------------------------------


@torch.no_grad()
def check_pictures(context: Context, stage: Literal["sft", "grpo"]) -> None:
    """TrainingError if what the model says of a stage's first sample is the same, bit for bit, with
    a blank picture in place of its own: the loss of a model that does not see falls as well."""
    config, backbone = context.config, context.backbone
    sample = getattr(context.dataset, config.sft.samples if stage == "sft" else "rl")[0]
    prompter = open_prompter(config, backbone, stage)
    prompts = [prompter.encode(sample).inputs, prompter.encode(sample, augment=blanked).inputs]
    was_training = backbone.model.training
    backbone.model.eval()
    seen, unseen = completion_logprobs(
        backbone.model,
        prompts,
        [[backbone.encode_target(SAID).tokens]] * 2,
        packing=context.packing,
        entropy=False,
    ).logprob
    backbone.model.train(was_training)
    if torch.equal(seen, unseen):
        raise TrainingError(
            f"{stage}: the model says the same of {sample.id} with a blank picture in place of its "
            f"own (equal log-probs of {SAID!r}), so it would be trained without seeing. Likely "
            "cause: a version of transformers in which pictures do not reach the model as they "
            "did. Install the versions of constraints.txt, and report this."
        )


def blanked(picture: Image.Image) -> Image.Image:
    """A picture of the same size, black or white, whichever is further from it."""
    (brightness,) = ImageStat.Stat(picture.convert("L")).mean
    return Image.new("RGB", picture.size, "black" if brightness > 127 else "white")


def frozen_bits(model: nn.Module) -> dict[str, int]:
    """Of every parameter that does not learn, the sum of its bits read as whole numbers: any one
    bit that changes is seen. The weights must be whole on this rank."""
    return {name: _bits(p.detach()) for name, p in model.named_parameters() if not p.requires_grad}


def _bits(weight: Tensor) -> int:
    same_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(weight.view(same_size[weight.element_size()]).sum(dtype=torch.int64))


def check_frozen(model: nn.Module, before: Mapping[str, int], where: str) -> None:
    """TrainingError if a parameter that does not learn is not what it was at `frozen_bits`."""
    now = frozen_bits(model)
    moved = [name for name in before if now.get(name) != before[name]]
    if moved:
        raise TrainingError(
            f"{where}: {moved[0]} does not learn by the settings, and yet it has changed, as have "
            f"{len(moved) - 1} others. What was trained is not what was asked for; the last "
            "checkpoint is from before. This is a fault of ours; please report it."
        )
