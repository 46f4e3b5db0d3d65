"""Hypothesis for mutation runs (`setup.cfg`): few examples, the same every time, not shrunk."""

from hypothesis import Phase, settings

settings.register_profile(
    "mutation",
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
