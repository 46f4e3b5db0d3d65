"""How numbers and stages are called, the same in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iad_r1.judge.thresholds import VALIDATION

STAGES = ("base", "pretrain", "sft", "grpo")  # in the order of training
PATCHCORE = "patchcore"  # no stage: what every model is compared with
STAGE_NAMES = {
    "base": "as loaded",
    "pretrain": "before training",
    "sft": "after PA-SFT",
    "grpo": "after SC-GRPO",
    PATCHCORE: "nearest good patches",
    "scored": "as in the file",
}
MODEL_NAMES = {  # the weights themselves, where "after" would not read well
    "base": "the model as loaded",
    "pretrain": "the untrained model",
    "sft": "PA-SFT",
    "grpo": "SC-GRPO",
    PATCHCORE: "nearest good patches",
    "scored": "the file's answers",
}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "miss_rate": "miss rate",
    "overkill_rate": "overkill rate",
    "location_accuracy": "location accuracy",
    "location_accuracy_detected": "location accuracy, detected only",
    "type_accuracy": "type accuracy",
    "well_formed": "well-formed answers",
    "invalid_rate": "unreadable answers",
    "yes_rate": "share answered yes",
    "auroc": "AUROC",
    "ap": "average precision",
    "f1_max": "best F1 (oracle)",
    "ece": "calibration error",
    "brier": "Brier score",
}
HEADLINE = ("balanced_accuracy", "location_accuracy", "type_accuracy", "well_formed")
HEADLINE_OF_CHOICES = ("accuracy", "well_formed")
HEADLINE_OF_GOOD = ("overkill_rate", "well_formed")  # where no picture has a defect
HEADLINE_OF_DEFECTIVE = ("miss_rate", *HEADLINE[1:])  # where all have one
SPLIT_NAMES = {
    "seen": "products seen in training",
    "new": "products new to PA-SFT",
}
NOTHING = "–"  # as tables print an undefined value
MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NO-BREAK SPACE}%"


def headline(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics a table begins with: those of yes and no, of good or of defective pictures alone,
    or of a multiple choice."""
    if row.get("accuracy") is not None and row.get("gold_yes_rate") is None:
        return HEADLINE_OF_CHOICES
    if row.get("gold_yes_rate") == 0:
        return HEADLINE_OF_GOOD
    return HEADLINE_OF_DEFECTIVE if row.get("gold_yes_rate") == 100 else HEADLINE


def leading(
    changes: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The changes in the metric that their pictures' table begins with."""
    leads = {(row["split"], row["shots"]): headline(row)[0] for row in rows}
    return [row for row in changes if row["metric"] == leads.get((row["split"], row["shots"]))]


def stage_order(stage: str) -> int:
    """The place of a stage in training; unknown ones come last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def stage_name(stage: str) -> str:
    """ "after SC-GRPO" for "grpo"; an unknown stage keeps its own name."""
    return STAGE_NAMES.get(stage, stage)


def model_name(stage: str) -> str:
    """ "SC-GRPO" for "grpo"; an unknown stage keeps its own name."""
    return MODEL_NAMES.get(stage, stage)


def split_name(split: str) -> str:
    """The split in words where it has some; validation images are said to be such."""
    if is_validation(split):
        return f"validation images, {split_name(split.removeprefix(VALIDATION))}"
    return SPLIT_NAMES.get(split, split.replace("_", " "))


def is_validation(split: str) -> bool:
    """Whether a split was there to make choices on."""
    return split.startswith(VALIDATION)


def percent(value: float | None) -> str:
    """One decimal, or a dash where undefined."""
    return NOTHING if value is None else f"{value:.1f}"


def rule(row: Mapping[str, Any]) -> str:
    """What a threshold was chosen for: "at most 5 % missed"."""
    if row["rule"] == "f1":
        return "largest F1"
    return f"at most {row['limit']:g} % {'missed' if row['rule'] == 'miss' else 'rejected'}"


def interval(bounds: Sequence[float] | None) -> str:
    """ "[91.2, 95.4]", or nothing."""
    return "" if not bounds else "[" + ", ".join(signless(bound) for bound in bounds) + "]"


def span(bounds: Sequence[float]) -> str:
    """ "91.2 to 95.4"."""
    return " to ".join(signless(bound) for bound in bounds)


def differs(row: Mapping[str, Any]) -> str:
    """How one of several runs differs from the first, and whether that may be chance."""
    sure = "may be chance" if row["verdict"] == "not clear" else f"is {row['verdict']}"
    if not row["n_changed"]:
        pair = f"{row['to']} and {row['from']}"
        return f"{row['split']}, {row['shots']}-shot: {pair} judge no image differently."
    return (
        f"{row['split']}, {row['shots']}-shot: {row['to']} differs from {row['from']} by "
        f"{points(row['delta'])} points of {METRIC_NAMES[row['metric']]} (95{PERCENT} interval "
        f"{span(row['ci95'])}); that {sure}."
    )


def signless(value: float) -> str:
    """One decimal with a true minus sign; never "-0.0"."""
    text = f"{abs(value):.1f}"
    return text if value >= 0 or text == "0.0" else MINUS + text


def points(value: float | None) -> str:
    """A difference with its sign: "+8.4"."""
    if value is None:
        return NOTHING
    text = signless(value)
    return text if text.startswith(MINUS) or text == "0.0" else f"+{text}"


def clear(comparison: Mapping[str, Any]) -> bool:
    """Whether the 95 % interval of a difference leaves out zero."""
    bounds = comparison.get("ci95")
    return bool(bounds) and (bounds[0] > 0 or bounds[1] < 0)


def chosen(config: Mapping[str, Any], section: str) -> str:
    """The option of a section that a run was given, such as "3x3" of `grid`; benchmarks may be
    several. Where no model answered, nearest good patches stand for the backbone, and what is set
    of a model is nothing."""
    method = config.get("method") or {}
    if method.get("name") == PATCHCORE and section in ("backbone", "rewards", "tuning"):
        return PATCHCORE if section == "backbone" else ""
    values = config.get(section)
    if not isinstance(values, Mapping):
        return ""
    return "+".join(values) if section == "benchmark" else str(values.get("name") or "")


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A configuration as ("grpo.group_size", "8") lines."""
    lines: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{prefix}{name}.")
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            lines += flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", "null" if value is None else str(value)))
    return lines
