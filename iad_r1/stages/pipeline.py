"""Carries out the steps of a run: PA-SFT, SC-GRPO and an evaluation before and after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch

from iad_r1 import data, prompts, report
from iad_r1.backbones import hub, tiny, twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.backbones.packing import check_packing
from iad_r1.backbones.published.build import build_processor, build_random
from iad_r1.data import targets
from iad_r1.errors import DataError, MismatchError
from iad_r1.grid import as_grid
from iad_r1.learn import lora, optim
from iad_r1.loops import evaluate, grpo, pretrain, sft
from iad_r1.loops.context import Context
from iad_r1.processes import distributed, ranks
from iad_r1.report import gallery, terminal
from iad_r1.settings.config import Config
from iad_r1.store import cards, checkpoints
from iad_r1.store.run_folder import RunFolder, Start, find_start
from iad_r1.store.tracking import Tracker
from iad_r1.types import Dataset

TRAIN: dict[str, Callable[[Context], None]] = {
    "pretrain": pretrain.train,
    "sft": sft.train,
    "grpo": grpo.train,
}
GALLERY = 24  # pictures kept for the report, per split


def run(config: Config, folder: RunFolder) -> None:
    """Take `config.steps()` one after the other, on all ranks, then print and write what came of
    it."""
    torch.manual_seed(config.seed)
    with distributed.joined(config.engine), tracking(config, folder) as tracker:
        take_steps(open_run(config, folder, tracker))
        if tracker is not None:
            tracker.finish(folder.summary())
    if ranks.is_main():
        if "report" in config.steps():
            report.build(folder.path)
        terminal.print_summary(folder.summary(), folder.path)


@contextmanager
def tracking(config: Config, folder: RunFolder) -> Iterator[Tracker | None]:
    """The run's tracker, on rank 0."""
    if not distributed.is_main():
        yield None
        return
    with Tracker(config.tracking, folder.path, config.model_dump()) as tracker:
        yield tracker


def take_steps(context: Context) -> None:
    """The stages of the run that are still to be taken; weights that were judged already are not
    judged again, in this process or an earlier one."""
    evaluated = list(
        dict.fromkeys(row["stage"] for row in context.folder.summary().get("results", []))
    )
    distributed.barrier()  # nobody adds results before everybody has read them
    for step in context.config.steps()[taken(context.config, context.folder) :]:
        if step in TRAIN:
            train(context, step)
        elif step == "evaluate" and context.stage not in evaluated:
            evaluated.append(context.stage)
            judge(context, evaluated)


def taken(config: Config, folder: RunFolder) -> int:
    """How many steps of the run earlier processes have ended: all up to the last trained one."""
    steps = config.steps()
    ended = [n for n, s in enumerate(steps, 1) if s in TRAIN and folder.checkpoint(s).is_dir()]
    return max(ended, default=0)


def open_run(config: Config, folder: RunFolder, tracker: Tracker | None) -> Context:
    """Data first, then weights: what is wrong with a folder of images is said before any load."""
    check_packing(config.grpo.packing, distributed.device(config.engine))
    if distributed.is_main():
        print("reading or drawing the pictures ...", flush=True)
    dataset = data.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    if distributed.is_main():
        check_same_data(folder, dataset)
        folder.update_manifest(
            data={
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "counts": dict(dataset.counts),
            }
        )
        leaks = dataset.counts.get("leaks", 0)
        if leaks:
            print(
                f"{leaks} training pictures are near-duplicates of test pictures: results on them "
                "flatter (data.drop_leaks=true leaves them out)",
                flush=True,
            )
    check_references(config, dataset)
    start = find_start(folder.path) if taken(config, folder) else None
    if start is None and config.init is not None:
        start = find_start(config.init)
    backbone = open_backbone(config, folder, dataset, start)
    stage = start.stage if start else "base"
    context = Context(config, folder, tracker, dataset, backbone, stage)
    if distributed.is_main():
        shown = chain.from_iterable(evaluate.splits(context).values())
        gallery.save(folder.path, list(shown), GALLERY)
    return context


def check_same_data(folder: RunFolder, dataset: Dataset) -> None:
    """MismatchError if the run began with other pictures than it would go on with."""
    before = folder.read_json("manifest.json").get("data", {}).get("fingerprint")
    if before not in (None, dataset.fingerprint):
        raise MismatchError(
            f"the run in {folder.path} began with other data: fingerprint {before}, now "
            f"{dataset.fingerprint}. Give it the same pictures, labels and masks, or start a new "
            "run (without resume)."
        )


def check_references(config: Config, dataset: Dataset) -> None:
    """DataError if some picture has fewer references than the most that will be shown."""
    shots = max(config.evaluate.shots) if "evaluate" in config.steps() else 0
    parts = (*dataset.validation.values(), *dataset.test.values())
    short = [s for part in parts for s in part if len(s.references) < shots]
    if short:
        most = min(len(sample.references) for sample in short)
        raise DataError(
            f"evaluate.shots asks for {shots} reference pictures, but {len(short)} pictures, such "
            f"as {short[0].id}, have fewer. Use at most evaluate.shots=[{most}]."
        )


def open_backbone(
    config: Config, folder: RunFolder, dataset: Dataset, start: Start | None
) -> Backbone:
    """The weights to begin with, and how large a picture they are shown."""
    backbone = load_weights(config, folder, dataset, start)
    backbone.limit_pixels(config.backbone.max_pixels)
    return backbone


def load_weights(
    config: Config, folder: RunFolder, dataset: Dataset, start: Start | None
) -> Backbone:
    """An earlier run's weights, published ones, or those that are built here."""
    dtype = getattr(torch, config.engine.precision)
    device = str(distributed.device(config.engine))
    if start is not None:
        return Backbone.load(start.path, dtype, device)
    backbone = config.backbone
    if config.weights.name == "random":
        model = build_random(backbone.name, dtype, device, config.seed)
        return Backbone(model, build_processor(backbone.name))
    if backbone.source == "hub" and config.weights.name == "published":
        found, trusted = hub.fetch(backbone), backbone.trust_remote_code
        return Backbone.load(found, dtype, device, trust_remote_code=trusted)
    path = folder.checkpoint("base")
    if distributed.is_main() and not path.is_dir():
        build(config, dataset, path)
    distributed.barrier()
    return Backbone.load(path, dtype, device)


def build(config: Config, dataset: Dataset, path: Path) -> None:
    """Write the tiny backbone, or the tiny twin of a published one, to `path`."""
    backbone = config.backbone
    if backbone.source == "hub":
        with checkpoints.write_folder(path) as partial:
            twins.build_twin(backbone.name, partial, config.seed)
        return
    tiny.build(
        path,
        corpus(config, dataset),
        vocab_size=backbone.vocab_size,
        max_pixels=backbone.max_pixels,
        seed=config.seed,
    )


def corpus(config: Config, dataset: Dataset) -> Iterator[str]:
    """What the tiny tokenizer learns its words from: the prompts and the SFT targets."""
    for name in {config.sft.prompt, config.grpo.prompt, config.evaluate.prompt}:
        for shots in (0, 1):
            yield prompts.conversation(name, shots=shots).text
    for sample in dataset.sft:
        yield targets.chain_of_thought(sample, config.seed, as_grid(config.grid)).text


def train(context: Context, step: str) -> None:
    """One training stage, its checkpoint, and the time it took."""
    tuning = context.config.tuning
    with (
        context.timed(step),
        lora.adapter(context, step),
        optim.gradient_checkpointing(context.model, tuning.gradient_checkpointing),
    ):
        check_ranks(context, step)
        TRAIN[step](context)
        check_ranks(context, step)
    context.stage = step
    context.backbone.model.eval()
    if distributed.is_main():
        context.backbone.save(context.folder.checkpoint(step))
        cards.write_cards(context.folder, context.config, step)


def check_ranks(context: Context, step: str) -> None:
    """MismatchError unless every rank holds the same weights, bit for bit."""
    with torch.no_grad():
        mine = sum(p.double().abs().sum().item() for p in context.model.parameters())
    sums = distributed.everyone(mine)
    if len(set(sums)) > 1:
        raise MismatchError(
            f"{step}: the ranks hold different weights (sums of their sizes: {sums}), so their "
            "gradients would belong to different models. Run again with engine.ranks=1, and "
            "report this: it is a fault of ours."
        )


def judge(context: Context, evaluated: list[str]) -> None:
    """Evaluate the weights as they are and add the rows to `summary.json`."""
    with context.timed("evaluate"):
        rows = evaluate.run(context)
    if context.tracker is None:
        return
    earlier = context.folder.summary().get("results", [])
    results = [*(row for row in earlier if row["stage"] != context.stage), *rows]
    context.folder.update_summary(results=results, comparisons=evaluate.compare(context, evaluated))
    cards.write_cards(context.folder, context.config, context.stage)
    context.tracker.evaluation(results)
