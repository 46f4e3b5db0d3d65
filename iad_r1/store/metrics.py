"""Every number that a run logs, once: its name, the section it is shown in, its unit, which way is
better, and what it says.

`metrics.jsonl` has the names as they stand here. Trackers and dashboards show them by `key`, which
sorts them into sections: `train/grpo/loss`, `eval/seen/0shot/balanced_accuracy`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Section = Literal["train", "reward", "rollout", "system", "eval"]
SECTIONS: tuple[Section, ...] = get_args(Section)
UNLISTED = "other"  # the section of a number that is not listed
PART = "<part>"  # in a name, for the name of any component of the reward


@dataclass(frozen=True)
class Metric:
    """A number of one step, or of one evaluation."""

    name: str
    section: Section
    unit: str
    better: Literal["up", "down", ""]  # "": neither
    says: str

    def fits(self, name: str) -> bool:
        """Whether this is what is called `name`."""
        return re.fullmatch(re.escape(self.name).replace(PART, r"[\w:.+-]+"), name) is not None


METRICS = (
    # of an optimiser step
    Metric("loss", "train", "nats", "down", "what the step minimises"),
    Metric("grad_norm", "train", "", "", "norm of the gradient before it is clipped"),
    Metric("learning_rate", "train", "", "", "of the step"),
    Metric("phase", "train", "", "", "leg of PA-SFT, from 0"),
    Metric("kl", "train", "nats", "", "mean estimate of KL(policy || reference) per token"),
    Metric("entropy", "train", "nats", "", "mean entropy of the policy per token"),
    Metric("clip_fraction_low", "train", "share", "", "tokens clipped at the lower bound"),
    Metric("clip_fraction_high", "train", "share", "", "tokens clipped at the upper bound"),
    Metric("ratio_min", "train", "", "", "smallest ratio of new to old policy"),
    Metric("ratio_mean", "train", "", "", "mean ratio of new to old policy"),
    Metric("ratio_max", "train", "", "", "largest ratio of new to old policy"),
    Metric("advantage_std", "train", "", "", "standard deviation of the advantages"),
    Metric("advantage_min", "train", "", "", "smallest advantage"),
    Metric("advantage_max", "train", "", "", "largest advantage"),
    # of what completions earn
    Metric("reward", "reward", "", "up", "mean total reward"),
    Metric("reward_std", "reward", "", "", "standard deviation of the total reward"),
    Metric("reward_normal", "reward", "", "up", "mean total reward on good pictures"),
    Metric("reward_anomalous", "reward", "", "up", "mean total reward on defective pictures"),
    Metric(f"reward_{PART}_normal", "reward", "", "up", "mean of a component on good pictures"),
    Metric(f"reward_{PART}_anomalous", "reward", "", "up", "the same on defective pictures"),
    Metric(f"reward_{PART}", "reward", "", "up", "mean of one component of the reward"),
    # of what was said
    Metric("length_mean", "rollout", "tokens", "", "mean length of completions"),
    Metric("length_max", "rollout", "tokens", "", "longest completion"),
    Metric("truncated", "rollout", "share", "down", "completions cut off at the limit"),
    Metric("yes_rate", "rollout", "share", "", "completions that say yes"),
    Metric("gold_yes_rate", "rollout", "share", "", "pictures with a defect"),
    Metric("invalid_rate", "rollout", "share", "down", "completions without a readable answer"),
    Metric("degenerate_groups", "rollout", "share", "down", "groups of equal rewards, first draw"),
    Metric("degenerate_left", "rollout", "share", "down", "the same after drawing anew"),
    Metric("resampled_groups", "rollout", "groups", "", "groups drawn anew"),
    Metric("staleness", "rollout", "steps", "", "age of the oldest weights that drew the batch"),
    Metric("sampler_gap", "rollout", "nats", "down", "largest unexplained |sampler - trainer|"),
    Metric("sampler_gap_high", "rollout", "nats", "down", "its 95 % quantile"),
    Metric("sampler_gap_mean", "rollout", "nats", "down", "mean raw |sampler - trainer|"),
    Metric("sampler_gap_max", "rollout", "nats", "down", "largest raw |sampler - trainer|"),
    Metric("importance_min", "rollout", "", "", "smallest raw ratio of trainer to sampler"),
    Metric("importance_mean", "rollout", "", "", "mean raw ratio of trainer to sampler"),
    Metric("importance_max", "rollout", "", "", "largest raw ratio of trainer to sampler"),
    Metric("importance_capped", "rollout", "share", "down", "ratios above the cap"),
    # of what a step costs
    Metric("seconds_step", "system", "s", "down", "of the whole step"),
    Metric("seconds_pictures", "system", "s", "down", "pictures opened and encoded"),
    Metric("seconds_sync", "system", "s", "down", "weights handed to the sampler"),
    Metric("seconds_parity", "system", "s", "down", "sampler compared with trainer"),
    Metric("seconds_sample", "system", "s", "down", "completions drawn"),
    Metric("seconds_score", "system", "s", "down", "completions scored"),
    Metric("seconds_reference", "system", "s", "down", "log-probs of the reference"),
    Metric("seconds_update", "system", "s", "down", "forward, backward and optimiser"),
    Metric("tokens_per_second", "system", "1/s", "up", "completion tokens per second of a step"),
    Metric("peak_memory_mib", "system", "MiB", "down", "most that was held on the fullest device"),
    Metric("host_memory_mib", "system", "MiB", "down", "main memory of the largest process"),
    # of an evaluation
    Metric("accuracy", "eval", "%", "up", "answers that are right"),
    Metric("balanced_accuracy", "eval", "%", "up", "the same, good and defective counted alike"),
    Metric("miss_rate", "eval", "%", "down", "defective pictures not called so"),
    Metric("overkill_rate", "eval", "%", "down", "good pictures called defective"),
    Metric("location_accuracy", "eval", "%", "up", "defects put into the right place"),
    Metric("type_accuracy", "eval", "%", "up", "defects named rightly"),
    Metric("well_formed", "eval", "%", "up", "answers in the form that was asked for"),
    Metric("auroc", "eval", "%", "up", "how well P(yes) ranks pictures"),
    Metric("ap", "eval", "%", "up", "average precision of P(yes)"),
    Metric("f1_max", "eval", "%", "up", "best F1 over thresholds, an oracle"),
)
EVALUATED = tuple(metric.name for metric in METRICS if metric.section == "eval")


def find(name: str, *, of_evaluation: bool = False) -> Metric | None:
    """What `name` of metrics.jsonl, or of a row of results, is; None if it is not listed."""
    here = (m for m in METRICS if (m.section == "eval") == of_evaluation)
    return next((metric for metric in here if metric.fits(name)), None)


def key(stage: str, name: str) -> str:
    """How trackers call a number of a step of `stage`."""
    metric = find(name)
    return f"{metric.section if metric else UNLISTED}/{stage}/{name}"


def step_key(stage: str) -> str:
    """How trackers call the step of a stage: each counts its own from zero."""
    return f"{stage}/step"


def completions_key(stage: str) -> str:
    """How trackers call the table of completions of a stage."""
    return f"rollout/{stage}/completions"


EVAL_STAGE = "eval/stage"  # the x-axis of an evaluation: how many stages the weights were trained
RESULTS = "eval/results"  # the table of an evaluation
TESTED = "tested"  # in a key, the mean over the tested splits


def eval_key(split: str, shots: int, name: str) -> str:
    """How trackers call a number of an evaluation; `split` is TESTED for the mean over them."""
    return f"eval/{split}/{shots}shot/{name}"


def listed(tracked: str) -> Metric | None:
    """What a tracker's key shows; None if it is none of ours."""
    section, _, rest = tracked.partition("/")
    name = rest.rpartition("/")[2]
    found = find(name, of_evaluation=section == "eval")
    return found if found is not None and found.section == section else None
