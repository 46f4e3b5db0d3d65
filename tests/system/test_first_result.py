"""`python run.py`: the first thing a newcomer runs, at its full size."""

from __future__ import annotations

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_default_run_learns_what_the_readme_says(iad, value):
    """Floors well below what seeds 0 to 2 reached (README), far above what chance gives: 50 % for
    the answer, 11 % for the place, 14 % for the type."""
    summary = iad().summary
    assert value(summary, "pretrain", "seen", "balanced_accuracy") < 60
    for shots in (0, 1):
        assert value(summary, "sft", "seen", "balanced_accuracy", shots) >= 85
        assert value(summary, "sft", "seen", "location_accuracy", shots) >= 55
        assert value(summary, "sft", "seen", "well_formed", shots) >= 97
    gained = value(summary, "grpo", "new", "balanced_accuracy") - value(
        summary, "sft", "new", "balanced_accuracy"
    )
    assert gained > 0
    assert value(summary, "grpo", "seen", "balanced_accuracy") >= 85
