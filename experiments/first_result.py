"""The table of the README: does SC-GRPO teach the tiny model more than PA-SFT alone?

    python experiments/first_result.py                 all runs (about 45 minutes on 2 cores)
    python experiments/first_result.py --table-only    the table again from finished runs

For each seed: the whole pipeline (PA-SFT, then SC-GRPO with the full reward), and from the same
PA-SFT weights two controls of about the same compute: SC-GRPO that rewards the answer alone, and
more PA-SFT on the very pictures SC-GRPO trains on, labels given. Every choice was made on
validation pictures; this reads the test pictures once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from iad_r1 import metrics  # noqa: E402  (run from a checkout: the line above finds the package)
from iad_r1.run_folder import RunFolder, write_json, write_text  # noqa: E402
from iad_r1.stages.predictions import read_predictions  # noqa: E402

RESULTS = Path(__file__).with_suffix("")
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
    parser.add_argument("--table-only", action="store_true", help="start no run")
    arguments = parser.parse_args()
    runs = {seed: folders(seed, not arguments.table_only) for seed in arguments.seeds}
    found = {"rows": list(rows(runs)), "differences": list(differences(runs)), "runs": facts(runs)}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "numbers.json", found)
    write_text(RESULTS / "table.md", table(found))
    print(table(found))


def folders(seed: int, may_run: bool) -> dict[str, RunFolder]:
    """The finished run of every arm, started now if there is none."""
    full = finished("full", seed) or start("full", seed, may_run, [])
    sft = f"init={full.path / 'checkpoints' / 'sft'}"
    more = "{steps: 300, epochs: null, batch_size: 32, lr_scale: 0.3, vision_lr_scale: 0.1, "
    more += "freeze_vision: false, location_weight: 3.0, augment: true}"
    controls = {
        "answer_only": ["stage=grpo", "stage.steps=[grpo,evaluate]", "rewards=answer_only"],
        "sft_on_rl": [
            "stage=sft",
            "stage.steps=[sft,evaluate]",
            "sft.samples=rl",
            f"sft.phases=[{more}]",
        ],
    }
    return {"full": full} | {
        arm: finished(arm, seed) or start(arm, seed, may_run, [*settings, sft])
        for arm, settings in controls.items()
    }


def finished(arm: str, seed: int) -> RunFolder | None:
    """The newest run of an arm that ended well."""
    parent = REPOSITORY / "outputs" / f"first_result-{arm}-{seed}"
    for path in sorted(parent.glob("*"), reverse=True):
        folder = RunFolder(path)
        if folder.read_json("manifest.json").get("status") == "finished":
            return folder
    return None


def start(arm: str, seed: int, may_run: bool, settings: Sequence[str]) -> RunFolder:
    """Carry out one run and return its folder."""
    name = f"first_result-{arm}-{seed}"
    if not may_run:
        raise SystemExit(f"there is no finished run outputs/{name}; leave out --table-only")
    command = [sys.executable, "run.py", f"name={name}", f"seed={seed}", *settings]
    print("\n$ python", *command[1:], flush=True)
    subprocess.run(command, cwd=REPOSITORY, check=True)
    folder = finished(arm, seed)
    assert folder is not None  # the run ended with 0
    return folder


def answers(runs: dict[int, dict[str, RunFolder]], arm: str, split: str, shots: int) -> list:
    """The predictions of one arm, a list for each seed; "sft" are the weights all arms start at."""
    stage = {"sft": "sft", "full": "grpo", "answer_only": "grpo", "sft_on_rl": "sft"}[arm]
    source = "full" if arm == "sft" else arm
    paths = [arms[source].predictions(stage, split, shots) for arms in runs.values()]
    return [list(read_predictions(path).values()) for path in paths]


def rows(runs: dict[int, dict[str, RunFolder]]) -> Iterator[dict[str, Any]]:
    """Mean over seeds of every metric, for every arm, split and number of shots."""
    for name, arm in {"PA-SFT": "sft", **ARMS}.items():
        for split in SPLITS:
            for shots in (0, 1):
                seeds = [
                    metrics.summarise(a, seed=0, resamples=200)
                    for a in answers(runs, arm, split, shots)
                ]
                means = {m: [s[m] for s in seeds] for m in (*METRICS, "miss_rate", "overkill_rate")}
                yield {"arm": name, "split": split, "shots": shots, "per_seed": means,
                       **{m: sum(values) / len(values) for m, values in means.items()}}  # fmt: skip


def differences(runs: dict[int, dict[str, RunFolder]]) -> Iterator[dict[str, Any]]:
    """Paired differences on the same pictures, pooled over seeds, with 95 % intervals."""
    pairs = [("sft", arm) for arm in ARMS.values()]
    pairs += [(control, "full") for control in ("answer_only", "sft_on_rl")]
    for before, after in pairs:
        for split in SPLITS:
            for metric in METRICS:
                old, new = (answers(runs, arm, split, 0) for arm in (before, after))
                found = metrics.pooled_paired_difference(
                    list(zip(old, new, strict=True)), metric, seed=0
                )
                yield {"from": before, "to": after, "split": split, "shots": 0, "metric": metric,
                       **found}  # fmt: skip


def facts(runs: dict[int, dict[str, RunFolder]]) -> list[dict[str, Any]]:
    """Where the numbers come from: seconds, code revision and hardware of every run."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "seconds": folder.summary().get("seconds"),
            **{
                key: value
                for key, value in folder.read_json("manifest.json").items()
                if key in ("code", "hardware")
            },
        }
        for seed, arms in runs.items()
        for arm, folder in arms.items()
    ]


def table(found: dict[str, Any]) -> str:
    """Markdown: levels first, then what changed."""
    lines = [
        "| weights | pictures | balanced accuracy | location | type | miss | overkill |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if row["shots"] == 0:
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
