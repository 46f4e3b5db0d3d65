"""What tests/system/test_zero.py starts: stages of tiny runs, and faults where it asks for them.

[torchrun] zero_program.py '[[name, settings, stages, base], ...]' FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from iad_r1.backbones.backbone import Backbone
from iad_r1.command import compose
from iad_r1.data import mix
from iad_r1.errors import IadError, TrainingError
from iad_r1.grid import as_grid
from iad_r1.learn import learner, lora, optim, saving
from iad_r1.learn.context import Context
from iad_r1.loops import pipeline
from iad_r1.loops.collect import Collector
from iad_r1.processes import distributed, ranks, stopping
from iad_r1.settings.stage import Task
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Score

LOGGED = ("loss", "grad_norm", "reward", "kl", "sampler_gap")


class Log:
    """In place of a run's tracker: keeps the numbers that must not depend on the engine."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, stage: str, step: int, values: Any) -> None:
        self.rows.append({"stage": stage, "step": step, **{k: values[k] for k in LOGGED
                                                          if k in values}})  # fmt: skip

    def rollouts(self, *_given: Any) -> None: ...

    def rewind(self, *_given: Any) -> None: ...

    def flush(self) -> None: ...


def uneven(self: Collector, samples: Any, completions_PG: Any) -> list[list[Score]]:
    """A reward that untrained models can win, and that leaves some ranks without a signal: in
    some batches, groups at even places, which are rank 0's, all earn the same."""
    poor = zlib.crc32(samples[0].id.encode()) % 2
    return [
        [
            Score(float(sum(c.tokens) % 5 + i) if n % 2 or not poor else 1.0, {"answer": 0.0})
            for i, c in enumerate(group)
        ]
        for n, group in enumerate(completions_PG)
    ]


class Witness:
    """Looks at what the learners do, and lets things go wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.passes, self.held = folder, [], 0
        self.whole, self.kind = 0, ""
        self.fault = os.environ.get("IAD_R1_TEST_FAULT", "").split()
        honest = learner.Learner.accumulate
        done = saving.Saver.done
        witness = self

        def watched(method: Any) -> Any:
            def accumulate(self: Any, parts: Any, where: str, idle: Any = None) -> float:
                witness.passes.append(distributed.everyone(len(parts)))
                return method(self, witness.go_wrong(parts, where), where, idle)

            return accumulate

        def taken(self: Any, step: int, values: Any) -> None:
            witness.see(self.learner)
            done(self, step, values)

        learner.Learner.accumulate = watched(honest)
        saving.Saver.done = taken
        if any("engine=zero" in text for text in sys.argv):
            from iad_r1.learn import zero

            zero.ZeroLearner.accumulate = watched(zero.ZeroLearner.accumulate)
            zero.ZeroLearner.update = self.careful(zero.ZeroLearner.update)
            config = zero.deepspeed_config
            # small parameters are not parted by default, and here all are small
            small = {"stage3_param_persistence_threshold": 0}
            zero.deepspeed_config = lambda *given: _with(config(*given), small)
        self.engines: list[list[dict[str, float]]] = []  # of each sync, of each rank
        if any("rollout=vllm" in text for text in sys.argv):
            self.watch_engine()

    def watch_engine(self) -> None:
        """Note the sums of what the engine of every rank took at each synchronisation, and, where
        they can be read, of what it holds then."""
        from iad_r1.rollouts.colocate.sampler import VllmSampler

        witness, sync = self, VllmSampler.sync

        def watched(self: Any, change: Any = None) -> None:
            sync(self, change)
            if change is None:
                held = {**(self.sums or {}), **self.weight_sums()}
                witness.engines.append(distributed.everyone(held))

        VllmSampler.sync = watched

    def see(self, of: learner.Learner) -> None:
        """What this rank holds of the weights between two steps."""
        parameters = list(of.model.parameters())
        self.kind = type(of).__name__
        self.held = sum(p.numel() for p in parameters)
        self.whole = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)

    def careful(self, method: Any) -> Any:
        """An update that is refused: whether it left the weights as they were, in a file."""

        def update(learner: Any, where: str) -> dict[str, float]:
            before = self.learned(learner) if self.fault else []
            try:
                return method(learner, where)
            except TrainingError:
                same = all(map(torch.equal, before, self.learned(learner)))
                if distributed.is_main():
                    (self.folder / "weights-after-error").write_text("same" if same else "other")
                raise

        return update

    def learned(self, learner: Any) -> list[torch.Tensor]:
        """The float32 copies of the weights, whole."""
        from deepspeed.utils import safe_get_full_fp32_param

        learning = [p for p in learner.model.parameters() if p.requires_grad]
        found = [safe_get_full_fp32_param(parameter) for parameter in learning]
        return [copy.clone() for copy in found if copy is not None]

    def go_wrong(self, parts: Any, where: str) -> Any:
        """The losses to add up, or an end."""
        if not self.fault or distributed.rank() != 1:
            return parts
        kind, stage, step = self.fault
        if where != f"{stage} step {step}":
            return parts
        (self.folder / "fault-at").write_text(str(time.time()))
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "refuse":
            raise TrainingError(f"{where}: planted")
        if kind in SPOILED:
            return [partial(SPOILED[kind], part) for part in parts]
        raise RuntimeError("planted")


def no_gradient(part: Any) -> torch.Tensor:
    """A loss whose gradient is no number."""
    loss = part()
    loss.register_hook(lambda gradient: gradient * torch.nan)
    return loss


SPOILED = {"nan-loss": lambda part: part() * torch.nan, "nan-gradient": no_gradient}


def _with(config: dict[str, Any], zero: dict[str, Any]) -> dict[str, Any]:
    return {**config, "zero_optimization": {**config["zero_optimization"], **zero}}


def case(root: Path, name: str, overrides: list[str], stages: list[Task], base: str) -> None:
    """Train the stages, from the weights in `base`, and write what came of them."""
    config = compose.compose([*overrides, f"name={name}"])
    folder, witness = RunFolder(root / name), WITNESS
    log: Any = Log()
    if distributed.is_main():
        folder.path.mkdir(exist_ok=True)
    distributed.barrier()
    dataset = mix.load(config.data, as_grid(config.grid), config.grid.mask_rule, config.seed)
    backbone = Backbone.load(root / base, getattr(torch, config.engine.precision))
    context = Context(config, folder, log, dataset, backbone, "base")
    before = {k: v.float().clone() for k, v in context.model.state_dict().items()}
    witness.passes, witness.engines = [], []
    checkpointing = config.tuning.gradient_checkpointing
    for stage in stages:
        with lora.adapter(context, stage), optim.gradient_checkpointing(
            context.model, checkpointing
        ):  # fmt: skip
            pipeline.TRAIN[stage](context)
            pipeline.check_ranks(context, stage)
    if distributed.is_main():
        torch.save(
            {
                "rows": log.rows,
                "before": before,
                "weights": {k: v.float() for k, v in context.model.state_dict().items()},
                "passes": witness.passes,
                "engines": witness.engines,
                "learner": witness.kind,
                "held": witness.held,
                "whole": witness.whole,
            },
            folder.path / "result.pt",
        )
    distributed.barrier()


def main() -> int:
    """As the worker does, with respect to who says what went wrong."""
    cases, root = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    Collector.score = uneven
    stopping.let_signals_in()
    try:
        with distributed.joined(compose.compose(cases[0][1]).engine):
            for name, overrides, stages, base in cases:
                case(root, name, overrides, stages, base)
    except IadError as error:
        if ranks.may_speak(root, error):
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        if ranks.may_speak(root, error):
            raise
        return 1
    return 0


if __name__ == "__main__":
    WITNESS = Witness(Path(sys.argv[2]))
    ranks.leave(main())
