"""Settings of a run that is small enough for a test."""

SMALL = [
    "data.sizes.sft=24",
    "data.sizes.rl=12",
    "data.sizes.validation=8",
    "data.sizes.test=8",
    "rollout.max_tokens=12",
    "evaluate.max_tokens=12",
    "grpo.prompts_per_step=4",
    "grpo.group_size=4",
    "grpo.steps=2",
    "engine.ranks=1",
    "tracking=none",
]
