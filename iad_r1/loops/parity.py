"""One check of sampler and trainer, with the weights a run would begin with and after a change.

Passes the gate of `rollouts/parity.py`, changes all weights that `tuning` trains, as an optimiser
step would, and checks again. Nothing is saved but `parity.csv`.
"""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from iad_r1.learn import lora
from iad_r1.learn.context import Context
from iad_r1.loops.collect import open_gate
from iad_r1.loops.opening import open_run
from iad_r1.processes import distributed
from iad_r1.rollouts import open_sampler
from iad_r1.rollouts.parity import Row
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.settings.backbone import LoraTuning
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import find_start

MOVE = 0.02  # of each weight's own size: clearly more than a step, so that a missed one shows


def run(config: Config, folder: RunFolder) -> None:
    """Check, change the weights, check again; print both. MismatchError ends it."""
    torch.manual_seed(config.seed)
    with distributed.joined(config.engine):
        start = find_start(config.init) if config.init is not None else None
        context = open_run(config, folder, None, start)
        prompter = open_prompter(config, context.backbone, "grpo")
        sampler = open_sampler(config, context.backbone, config.rollout.batch_size)
        gate = open_gate(context, sampler, prompter)
        assert gate is not None, "the stage asks for a sampler with weights of its own"
        sampler.sync()
        rows = [gate.check("start", 0)]
        if isinstance(config.tuning, LoraTuning):
            lora.wrap(context, config.tuning, dropout=0.0)
        move(context)
        sampler.sync()
        rows.append(gate.check("moved", 1))
        sampler.close()
    if distributed.is_main():
        Console().print(table(config, rows))


def move(context: Context) -> None:
    """Change every weight that learns, equally on every rank."""
    generator = torch.Generator().manual_seed(context.config.seed)
    with torch.no_grad():
        for weight in context.model.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(noise * MOVE * (weight.float().std().to(weight) + MOVE))


def table(config: Config, rows: list[Row]) -> Table:
    """What was compared, for the terminal."""
    found = Table(title=f"parity of {config.backbone.name} ({config.tuning.name})")
    for name in ("weights", "mean gap", "95 %", "largest", "vision weight changed", "seconds"):
        found.add_column(name, justify="left" if name == "weights" else "right")
    for row in rows:
        found.add_row(
            {"start": "as loaded", "moved": "after a change"}[row.stage],
            f"{row.mean:.2g} nats (limit {row.mean_limit:.2g})",
            f"{row.high:.2g} nats (limit {row.high_limit:.2g})",
            f"{row.gap:.2g} nats",
            f"{row.shown:.2g} nats",
            f"{row.seconds:.1f}",
        )
    return found
