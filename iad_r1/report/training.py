"""How training went: curves from metrics.jsonl, sampled answers from rollouts/, time spent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iad_r1.report import overlay
from iad_r1.report.run_data import RunData

NOT_CURVES = ("stage", "step", "not_finite", "phase", "epoch", "run")
# Which curves share a panel; the first pattern that fits a whole name decides, else it is alone.
PANELS = (
    (r"reward(_normal|_anomalous)?", "reward"),
    (r"reward_std", "reward: standard deviation"),
    (r"reward[_/].+_normal", "reward parts, normal images"),
    (r"reward[_/].+_anomalous", "reward parts, defective images"),
    (r"reward[_/].+", "reward parts"),
    (r"length_.+|completion_length", "completion length, tokens"),
    (r"(gold_)?yes_rate|invalid_rate|truncated|degenerate_groups", "answers, share"),
    (r"ratio_.+", "ratio of new to old policy"),
    (r"importance_capped|degenerate_left", "groups and tokens set aside, share"),
    (r"importance_.+", "ratio of trainer to sampler, raw"),
    (r"sampler_gap.*", "sampler and trainer apart, nats"),
    (r"advantage_.+", "advantage"),
    (r"clip.+", "clipped tokens, share"),
    (r"seconds_.+", "seconds per step"),
)
# Panels shown at once, in this order; the others are folded away.
LEADING = (
    "reward", "reward parts", "loss", "kl", "completion length, tokens", "answers, share",
)  # fmt: skip
DYNAMICS = {"reward": "total reward", "length_mean": "completion length, tokens"}
SAMPLES = 3  # rollout rows shown of the first and of the last file of a stage

OVERLAID = ("reward", "loss", "kl", "length_mean", "yes_rate")  # of several runs, a panel each

ABOUT = ("product", "solution")  # columns of a rollout row that say what was asked

Row = dict[str, Any]
Series = dict[str, tuple[list[float], list[float]]]


def panels(run: RunData) -> dict[str, dict[str, Series]]:
    """Stage to panel title to curves, each a pair of steps and values. Of several runs a panel has
    one quantity, and a curve for each run."""
    found: dict[str, dict[str, Series]] = {}
    for line in run.steps:
        stage = found.setdefault(line["stage"], {})
        for name, value in line.items():
            if name in NOT_CURVES or isinstance(value, str | bool | list | dict):
                continue
            if run.members and name not in OVERLAID:
                continue
            panel, curve = (name, line["run"]) if run.members else (_panel(name), name)
            steps, values = stage.setdefault(panel, {}).setdefault(curve, ([], []))
            steps.append(line["step"])
            values.append(math.nan if value is None else float(value))
    return {stage: dict(sorted(of.items(), key=_rank)) for stage, of in found.items()}


def _panel(name: str) -> str:
    return next((title for pattern, title in PANELS if re.fullmatch(pattern, name)), name)


def _rank(panel: tuple[str, Series]) -> tuple[int, str]:
    return (LEADING.index(panel[0]) if leads(panel[0]) else len(LEADING)), panel[0]


def leads(title: str) -> bool:
    """Whether a panel is shown at once."""
    return title in LEADING


def dynamics(panels: Mapping[str, Series]) -> dict[str, Series]:
    """The total reward and the length of completions, which the paper's figure 9 shows; empty of a
    stage without them."""
    found = {}
    for metric, title in DYNAMICS.items():
        curves = panels.get(_panel(metric), {})
        alone = {metric: curves[metric]} if metric in curves else {}
        found[title] = alone or panels.get(metric, {})  # of several runs a panel is one metric
    return found if all(found.values()) else {}


def readable(series: Series) -> Series:
    """The same curves under names without what the panel's title already says."""
    shared = re.compile(r"^(reward|length|ratio|seconds)[_/](?=.)|_(normal|anomalous)$")
    if len(series) == 1:
        return {name.replace("_", " "): line for name, line in series.items()}
    parts = not {"reward", "reward_normal", "reward_anomalous"} & set(series)
    return {
        (shared.sub("", name) if parts else name).replace("_", " "): line
        for name, line in series.items()
    }


def not_finite(run: RunData) -> list[str]:
    """Steps whose numbers were NaN or infinite, in words."""
    return [
        f"{name} was {value} at step {line['step']} of {line['stage']}"
        + (f", {line['run']}" if run.members else "")
        for line in run.steps
        for name, value in (line.get("not_finite") or {}).items()
    ]


def seconds(run: RunData) -> list[Row]:
    """Time per phase, with its share of the whole in percent."""
    spent: Mapping[str, float] = run.summary.get("seconds") or {}
    total = sum(spent.values())
    return [
        {"phase": phase, "seconds": s, "share": 100 * s / total if total else 0.0}
        for phase, s in spent.items()
    ]


def rollouts(run: RunData) -> list[Row]:
    """A few sampled completions from the first and last rollout file of each stage."""
    stages: dict[str, list[Path]] = {}
    for path in sorted((run.folder / "rollouts").glob("*.parquet")):
        stages.setdefault(path.stem.rpartition("-")[0], []).append(path)
    found = []
    for stage, paths in stages.items():
        for path in dict.fromkeys((paths[0], paths[-1])):
            step = int(path.stem.rpartition("-")[2])
            found.append({"stage": stage, "step": step, "rows": _rollout_rows(path)})
    return found


def _rollout_rows(path: Path) -> list[Row]:
    import pandas

    found = []
    for row in pandas.read_parquet(path).head(SAMPLES).to_dict("records"):
        picture = row.get("thumbnail")
        found.append(
            {
                "about": ", ".join(str(row[name]) for name in ABOUT if row.get(name)),
                "text": str(row.get("completion", "")),
                "numbers": _numbers(row),
                "uri": overlay.data_uri(picture) if isinstance(picture, bytes) else None,
            }
        )
    return found


def _numbers(row: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """The numeric cells of a row, one level of nesting included."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found
