"""The tables of docs/results.md: does SC-GRPO teach the tiny model more than PA-SFT alone?

    python experiments/first_result.py                 all runs
    python experiments/first_result.py --table-only    the table again from finished runs
    python experiments/first_result.py --into short_sft --arms full answer_only \
        sft.phases.1.steps=40 grpo.steps=240 grpo.advantage=no_std

The second study starts from weights that place defects badly, so that there is something to teach.

For each seed: PA-SFT, then SC-GRPO with the full reward, and from the same PA-SFT weights two
controls of about the same compute: SC-GRPO that rewards the answer alone, and more PA-SFT on the
very pictures SC-GRPO trains on, labels given. Every choice was made on validation pictures; this
reads the test pictures once. What is finished is not run again; what was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import study

from iad_r1.judge.compare import pooled_paired_difference
from iad_r1.judge.predictions import read_predictions
from iad_r1.judge.rates import summarise
from iad_r1.store.run_folder import RunFolder, write_json, write_text

METRICS = ("balanced_accuracy", "location_accuracy", "type_accuracy")
SPLITS = ("seen", "new")
ARMS = {
    "SC-GRPO, full reward": "full",
    "SC-GRPO, answer only": "answer_only",
    "PA-SFT on the same pictures": "sft_on_rl",
}


def main() -> None:
    """Run what is missing, then write the table and its numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", choices=ARMS.values(), nargs="+", default=[*ARMS.values()])
    parser.add_argument("--into", default="first_result", help="folder for table and numbers")
    parser.add_argument("--table-only", action="store_true", help="start no run")
    parser.add_argument("settings", nargs="*", help="for every run, as run.py takes them")
    arguments = parser.parse_intermixed_args()

    def start(arm: str, seed: int, *overrides: str) -> RunFolder:
        settings = ["evaluate.shots=[0]", *overrides, *arguments.settings]
        may_run = not arguments.table_only
        return study.run(f"first_result-{arm}-{seed}", seed, *settings, may_run=may_run)

    runs = {seed: folders(seed, arguments.arms, start) for seed in arguments.seeds}
    found = {"rows": list(rows(runs)), "differences": list(differences(runs)),
             "runs": list(study.facts(runs))}  # fmt: skip
    results = Path(__file__).parent / arguments.into
    results.mkdir(exist_ok=True)
    write_json(results / "numbers.json", found)
    write_text(results / "table.md", table(found))
    print(table(found))


def folders(
    seed: int, arms: Sequence[str], start: Callable[..., RunFolder]
) -> dict[str, RunFolder]:
    """The finished run of every arm, started now if there is none. "full" holds the PA-SFT
    weights that the others start from, so it is always among them."""
    pretrained = start("pretrained", seed, "stage=pretrain")
    full = start(
        "full", seed, "stage.tasks=[sft,evaluate,grpo,evaluate]", f"init={pretrained.path}"
    )
    sft = f"init={full.path / 'checkpoints' / 'sft'}"
    more = "{steps: 300, epochs: null, batch_size: 32, lr_scale: 0.3, vision_lr_scale: 0.1, "
    more += "freeze_vision: false, location_weight: 3.0, verdict_weight: 1.0, augment: true}"
    controls = {
        "answer_only": ["stage=grpo", "stage.tasks=[grpo,evaluate]", "rewards=answer_only"],
        "sft_on_rl": [
            "stage=sft",
            "stage.tasks=[sft,evaluate]",
            "sft.samples=rl",
            f"sft.phases=[{more}]",
        ],
    }
    return {"full": full} | {
        arm: start(arm, seed, *controls[arm], sft) for arm in arms if arm in controls
    }


def present(runs: dict[int, dict[str, RunFolder]]) -> dict[str, str]:
    """The arms, by their names in the table, that were carried out."""
    return {name: arm for name, arm in ARMS.items() if all(arm in found for found in runs.values())}


def answers(runs: dict[int, dict[str, RunFolder]], arm: str, split: str) -> list:
    """The predictions of one arm, a list for each seed; "sft" are the weights all arms start at."""
    stage = {"sft": "sft", "full": "grpo", "answer_only": "grpo", "sft_on_rl": "sft"}[arm]
    source = "full" if arm == "sft" else arm
    paths = [arms[source].predictions(stage, split, 0) for arms in runs.values()]
    return [list(read_predictions(path).values()) for path in paths]


def rows(runs: dict[int, dict[str, RunFolder]]) -> Iterator[dict[str, Any]]:
    """Mean over seeds of every metric, for every arm and split."""
    for name, arm in {"PA-SFT": "sft", **present(runs)}.items():
        for split in SPLITS:
            seeds = [summarise(a, seed=0, resamples=200) for a in answers(runs, arm, split)]
            means = {m: [s[m] for s in seeds] for m in (*METRICS, "miss_rate", "overkill_rate")}
            yield {"arm": name, "split": split, "shots": 0, "per_seed": means,
                   **{m: sum(values) / len(values) for m, values in means.items()}}  # fmt: skip


def differences(runs: dict[int, dict[str, RunFolder]]) -> Iterator[dict[str, Any]]:
    """Paired differences on the same pictures, pooled over seeds, with 95 % intervals."""
    arms = list(present(runs).values())
    pairs = [("sft", arm) for arm in arms] + [(arm, "full") for arm in arms if arm != "full"]
    for before, after in pairs:
        for split in SPLITS:
            for metric in METRICS:
                old, new = (answers(runs, arm, split) for arm in (before, after))
                found = pooled_paired_difference(list(zip(old, new, strict=True)), metric, seed=0)
                yield {"from": before, "to": after, "split": split, "shots": 0, "metric": metric,
                       **found}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown: levels first, then what changed."""
    lines = [
        "| weights | pictures | balanced accuracy | location | type | miss | overkill |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        numbers = " | ".join(f"{row[m]:.1f}" for m in (*METRICS, "miss_rate", "overkill_rate"))
        lines.append(f"| {row['arm']} | {row['split']} | {numbers} |")
    names = {"sft": "PA-SFT"} | {arm: name for name, arm in ARMS.items()}
    lines += [
        "",
        "| change in points | pictures | balanced accuracy | location | type |",
        "|---|---|---|---|---|",
    ]
    changes = found["differences"]
    for start in range(0, len(changes), len(METRICS)):
        three = changes[start : start + len(METRICS)]
        what = f"{names[three[0]['from']]} → {names[three[0]['to']]}"
        numbers = " | ".join(
            f"{c['delta']:+.1f} [{c['ci95'][0]:+.1f}, {c['ci95'][1]:+.1f}]" for c in three
        )
        lines.append(f"| {what} | {three[0]['split']} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
