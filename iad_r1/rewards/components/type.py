"""Type accuracy (Eq. 5): how near the type named is to the true one."""

from __future__ import annotations

from iad_r1.rewards.case import Case


def score(case: Case) -> float | None:
    """0.0 to 1.0, by the set's vocabulary.

    None (not applicable, pays nothing) for a normal image and where the true type is unknown.
    """
    true = case.solution.type
    if true is None or case.vocabulary is None:
        return None
    said = case.parsed.type
    return 0.0 if said is None else case.vocabulary.score(said, true)


vars(score)["needs_vocabulary"] = True  # checked by `load`, before a completion is scored
