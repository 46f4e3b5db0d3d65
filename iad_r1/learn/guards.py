"""What stops a run that must not go on, and what it leaves behind for whoever looks into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iad_r1.errors import MismatchError, TrainingError
from iad_r1.processes import distributed
from iad_r1.settings.training import Collapse

Rows = Sequence[Mapping[str, Any]]


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
