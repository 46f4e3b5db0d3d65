"""What should PA-SFT learn? The table "Chains of thought" of docs/results.md.

    python experiments/chains.py                 all runs
    python experiments/chains.py --table-only    the table again from finished runs

For each seed `stage=expert_ad teacher=rules` writes about the training pictures of a drawn world.
From the same pre-trained weights, on the same pictures and in as many steps, PA-SFT then learns the
answer alone, the short wordings of `data/targets.py`, or the chains that were built: Tables 2 and
10 of IAD-R1 in miniature. Does `teacher=self` add anything? The model of short wordings answers on
the same pictures, and goes on with what was right; beside it, with as many steps of short wordings.
Nothing is chosen, so no validation picture is looked at, and the test pictures are read once. What
is finished is not run again; what was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import study

from iad_r1.judge.compare import pooled_paired_difference
from iad_r1.judge.predictions import read_predictions
from iad_r1.judge.rates import summarise
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Prediction

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "location_accuracy": "location",
    "type_accuracy": "type",
    "miss_rate": "miss",
    "overkill_rate": "overkill",
}
SPLITS = ("seen", "new")
ARMS = {
    "direct": "the answer alone",
    "short": "short wordings",
    "chains": "built chains",
    "more": "short wordings, then more steps of them",
    "own": "short wordings, then the model's own right answers",
}

SIZES = ["data.sizes.sft=1000", "data.sizes.rl=60"]
FEW = ["data.sizes.validation=10", "data.sizes.test=10"]  # where they are not asked about
ONE = ["engine.ranks=1", "tracking=none"]
LIMITS = ["evaluate.max_tokens=160", "rollout.max_tokens=160"]  # the longest chain takes 139
ZERO_SHOT = "sft.one_shot_share=0"
STEPS = [ZERO_SHOT, "sft.phases.0.steps=150", "sft.phases.1.steps=100"]
MORE = [ZERO_SHOT, "sft.phases.0.steps=50", "sft.phases.1.steps=50"]
# its own texts are as short, and as alike, as those that it has learned
OWN = ["teacher=self", "stage.words=[10,160]", "stage.alike=null"]
OWN += ["data.sizes.rl=240"]  # of 60, too few are right for good pictures of every product

Runs = Mapping[int, Mapping[str, RunFolder]]  # of each seed, by arm


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table-only", action="store_true", help="start no run")
    arguments = parser.parse_args()
    runs = {seed: dict(carried_out(seed, not arguments.table_only)) for seed in arguments.seeds}
    into = Path(__file__).parent / "chains"
    into.mkdir(exist_ok=True)
    tables = {"results": results(runs), "differences": differences(runs), "runs": origins(runs)}
    for name, rows in tables.items():
        found = pd.DataFrame(rows)
        found.to_csv(into / f"{name}.csv", index=False, float_format="%.1f")
        print(f"\n{name}\n{found.to_string(index=False, float_format='%.1f')}")


def carried_out(seed: int, may_run: bool) -> Iterator[tuple[str, RunFolder]]:
    """The runs of a seed by what they are: trained ones by arm, their answers by "<arm>-test"."""

    def start(arm: str, seed: int, *settings: str) -> RunFolder:
        return study.run(f"chains-{arm}-{seed}", seed, *settings, may_run=may_run)

    def lists(seed: int, arm: str = "build", *writer: str) -> list[str]:
        build = ["stage=expert_ad", "stage.shots=[0]", *SIZES, *FEW, *ONE, *writer]
        dataset = start(arm, seed, *build).path / "dataset"
        return ["data.sft=sft.json", "data.rl=grpo.json", f"data.root={dataset}"]

    # one tokenizer and one vision tower for all: words of both kinds of texts, seed 0
    both = ["data=mix", "data/parts=[expert_ad,synthetic]"]
    both += [text.replace("data.", "data.parts.expert_ad.") for text in lists(0)]
    both += [text.replace("data.", "data.parts.synthetic.") for text in [*SIZES, *FEW]]
    size = ["backbone.vocab_size=1024", "pretrain.steps=500"]
    pretrained = start("pretrained", 0, "stage=pretrain", *both, *ONE, *LIMITS, *size)
    yield "pretrained", pretrained

    def learn(arm: str, begin: RunFolder, *texts: str) -> Iterator[tuple[str, RunFolder]]:
        training = ["stage=sft", "stage.tasks=[sft]", f"init={begin.path}", *ONE, *LIMITS]
        trained = start(arm, seed, *training, *texts)
        yield arm, trained
        asked = ["evaluate.splits=[test]", "evaluate.shots=[0]", "patchcore.beside=never"]
        weights = ["stage=evaluate", f"init={trained.path}"]
        yield f"{arm}-test", start(f"{arm}-test", seed, *weights, *asked, *ONE, *LIMITS)

    rules, wordings = ["data=expert_ad", *lists(seed)], [*SIZES, *FEW]
    yield from learn("direct", pretrained, *STEPS, *rules, "sft.target=direct")
    found = dict(learn("short", pretrained, *STEPS, *wordings))
    yield from found.items()
    yield from learn("chains", pretrained, *STEPS, *rules)
    short = found["short"]
    own = lists(seed, "own-build", *OWN, f"init={short.path}", *LIMITS)
    yield from learn("more", short, *MORE, *wordings)
    yield from learn("own", short, *MORE, "data=expert_ad", *own)


def answers(runs: Runs, arm: str, split: str) -> list[list[Prediction]]:
    """The test answers of an arm, a list for each seed."""
    paths = [found[f"{arm}-test"].predictions("sft", split, 0) for found in runs.values()]
    return [list(read_predictions(path).values()) for path in paths]


def results(runs: Runs) -> Iterator[dict[str, Any]]:
    """Every metric of every arm, for each seed and their mean."""
    for arm in ARMS:
        for split in SPLITS:
            found = [summarise(each, seed=0, resamples=200) for each in answers(runs, arm, split)]
            table = pd.DataFrame(found, index=pd.Index(runs, name="seed"))[
                [*METRICS, "well_formed"]
            ]
            table.loc["mean"] = table.mean()
            for seed, row in table.iterrows():
                yield {"arm": arm, "split": split, "seed": seed, **row}


def differences(runs: Runs) -> Iterator[dict[str, Any]]:
    """Paired differences on the same pictures, pooled over seeds, with 95 % intervals."""
    compared = partial(pooled_paired_difference, seed=0)
    for before, after in combinations(ARMS, 2):
        for split in SPLITS:
            pairs = list(zip(*(answers(runs, arm, split) for arm in (before, after)), strict=True))
            for metric in METRICS:
                found = compared(pairs, metric)
                low, high = found["ci95"]
                yield {"from": before, "to": after, "split": split, "metric": metric,
                       "delta": found["delta"], "low": low, "high": high,
                       "seeds": found["n_seeds"]}  # fmt: skip


def origins(runs: Runs) -> Iterator[dict[str, Any]]:
    """Commit, machine and seconds of every run."""
    for row in study.facts(runs):
        code, machine = row.pop("code"), row.pop("hardware")
        row["seconds"] = round(sum((row["seconds"] or {}).values()))
        yield {**row, "commit": code["commit"][:12], "changed": code["dirty"], **machine}


if __name__ == "__main__":
    main()
