"""Carries out the tasks of a run: PA-SFT, SC-GRPO and an evaluation before and after each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
import torch

from iad_r1 import report
from iad_r1.errors import MismatchError
from iad_r1.learn import guards, lora, optim
from iad_r1.learn.context import Context, Run
from iad_r1.loops import evaluate, grpo, patchcore, pretrain, results, sft, sharing
from iad_r1.loops.opening import open_data, open_run
from iad_r1.processes import distributed, ranks
from iad_r1.report import gallery, terminal
from iad_r1.settings.config import Config
from iad_r1.settings.stage import Task
from iad_r1.store import cards, products
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import Start, find_start
from iad_r1.store.tracking import Tracker
from iad_r1.suites import mmad
from iad_r1.types import Dataset

TRAIN: dict[Task, Callable[[Context], None]] = {
    "pretrain": pretrain.train,
    "sft": sft.train,
    "grpo": grpo.train,
}


def run(config: Config, folder: RunFolder) -> None:
    """Take `config.tasks()` one after the other, on all ranks, then print and write what came of
    it."""
    seed_all(config.seed)
    with tracking(config, folder) as tracker:
        with distributed.joined(config.engine):
            distributed.check_same_folder(folder.path)
            carry_out(config, folder, tracker)
        if tracker is not None:  # the other ranks need not wait
            if "report" in config.tasks():
                report.build(folder.path)
                tracker.made(partial(products.report, folder))
            tracker.finish(folder.summary())
    if ranks.is_main():
        terminal.print_summary(folder.summary(), folder.path)


def carry_out(config: Config, folder: RunFolder, tracker: Tracker | None) -> None:
    """Open data and weights, and take the tasks."""
    if config.method.name == "patchcore":
        judge(config, folder, open_data(config, folder), alone=True)
        if tracker is not None:
            tracker.evaluation(folder.summary().get("results", []))
        return
    if config.backbone.source == "api":
        context = Run(config, folder, tracker, open_data(config, folder), None, "base")
    else:
        context = open_run(config, folder, tracker, begin(config, folder))
    context.made(partial(products.data, folder))
    judge(config, folder, context.dataset, alone=False)
    take_tasks(context)


def judge(config: Config, folder: RunFolder, dataset: Dataset, *, alone: bool) -> None:
    """Keep the pictures of the report, and have nearest good patches judge what is evaluated:
    `alone`, so that theirs are the results, or beside a model."""
    if distributed.is_main():
        shown = chain.from_iterable(results.splits(config, dataset).values())
        gallery.save(folder.path, list(shown))
    distributed.barrier()  # heat maps are kept beside the pictures that are there
    chosen = patchcore.required(config, dataset) if alone else patchcore.beside(config, dataset)
    if not chosen:
        return
    began = time.perf_counter()
    rows = patchcore.run(config, folder, dataset, chosen)
    if distributed.is_main():
        folder.add_seconds("patchcore", time.perf_counter() - began)
        folder.update_summary(**{"results" if alone else "baselines": rows})


def begin(config: Config, folder: RunFolder) -> Start | None:
    """Whose weights the run goes on with: its own if it has trained some, else those of `init`."""
    if taken(config, folder):
        return find_start(folder.path)
    return find_start(config.init) if config.init is not None else None


@contextmanager
def tracking(config: Config, folder: RunFolder) -> Iterator[Tracker | None]:
    """The run's tracker, on rank 0."""
    if not ranks.is_main():
        yield None
        return
    with Tracker(config.tracking, folder.path, config.model_dump()) as tracker:
        yield tracker


def take_tasks(context: Run) -> None:
    """The stages of the run that are still to be taken; weights that were judged already are not
    judged again, in this process or an earlier one."""
    evaluated = list(
        dict.fromkeys(row["stage"] for row in context.folder.summary().get("results", []))
    )
    sharing.keep_ended(context, context.config.tasks()[: taken(context.config, context.folder)])
    distributed.barrier()  # nobody adds results before everybody has read them
    for task in context.config.tasks()[taken(context.config, context.folder) :]:
        if task in ("pretrain", "sft", "grpo"):
            assert isinstance(context, Context)  # an outside model is not trained
            train(context, task)
        elif task == "evaluate" and context.stage not in evaluated:
            evaluated.append(context.stage)
            measure(context, evaluated)


def taken(config: Config, folder: RunFolder) -> int:
    """How many tasks of the run earlier processes have ended: all up to the last trained one."""
    tasks = config.tasks()
    ended = [n for n, s in enumerate(tasks, 1) if s in TRAIN and folder.checkpoint(s).is_dir()]
    return max(ended, default=0)


def train(context: Context, task: Literal["pretrain", "sft", "grpo"]) -> None:
    """One training stage, its checkpoint, and the time it took; or what another run has made of
    the same."""
    with sharing.shared(context, task) as shared:
        if shared.found is None:
            learn(context, task)
            if distributed.is_main():
                context.backbone.save(context.folder.checkpoint(task))
            shared.keep()
        else:
            with context.timed(task):
                shared.take()
    context.stage = task
    context.backbone.model.eval()
    if distributed.is_main():
        cards.write_cards(context.folder, context.config, task)
        context.made(partial(products.weights, context.folder, task, context.config.init))


def learn(context: Context, task: Literal["pretrain", "sft", "grpo"]) -> None:
    """Carry out a training stage in place. It begins with the same random numbers whatever was
    done before it, so that it goes on from weights that were taken as from those of its own."""
    tuning = context.config.tuning
    seed_all(context.config.seed)
    with (
        context.timed(task),
        lora.adapter(context, task),
        optim.gradient_checkpointing(context.model, tuning.gradient_checkpointing),
    ):
        check_ranks(context, task)
        if task in ("sft", "grpo"):
            guards.check_pictures(context, task)
        TRAIN[task](context)
        check_ranks(context, task)
    context.backbone.model.eval()


def seed_all(seed: int) -> None:
    """Every global stream of random numbers; libraries may draw from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_ranks(context: Context, task: str) -> None:
    """MismatchError unless every rank holds the same weights, bit for bit."""
    with torch.no_grad():
        mine = sum(p.abs().sum(dtype=torch.float64).item() for p in context.model.parameters())
    sums = distributed.everyone(mine)
    if len(set(sums)) > 1:
        raise MismatchError(
            f"{task}: the ranks hold different weights (sums of their sizes: {sums}), so their "
            "gradients would belong to different models. Run again with engine.ranks=1, and "
            "report this: it is a fault of ours."
        )


def measure(context: Run, evaluated: list[str]) -> None:
    """Evaluate the weights as they are and add the rows to `summary.json`."""
    with sharing.shared(context, "evaluate") as shared:
        with context.timed("evaluate"):
            if shared.found is not None:
                shared.take()
            rows = evaluate.run(context)
        if shared.found is None:
            shared.keep()
    if context.tracker is None:
        return
    earlier = context.folder.summary().get("results", [])
    rows = [*(row for row in earlier if row["stage"] != context.stage), *rows]
    answers = evaluate.answers_of(context, evaluated)
    asked = chain.from_iterable(results.splits(context.config, context.dataset).values())
    mmad.write(context.folder.path / "mmad", context.config.backbone.name, answers, asked)
    context.folder.update_summary(
        results=rows,
        comparisons=evaluate.compare(context, evaluated),
        **results.more(context.config.evaluate, answers, context.config.seed),
    )
    if context.backbone is not None:
        cards.write_cards(context.folder, context.config, context.stage)
    context.tracker.evaluation(rows)
    init = context.config.init
    context.made(partial(products.evaluation, context.folder, context.stage, init))
