"""What the pictures of a data set cost a model, and which defects are too small to be seen."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from iad_r1.data.checkup import Look, Problem, Source, named
from iad_r1.planner.widths import Shown

Sight = Callable[[int, int], Shown]  # of a picture's width and height


def costs(sources: Sequence[Source], sights: Mapping[str, Sight], least: int) -> dict[str, Any]:
    """For each sight: tokens of a picture (fewest, median, most), pixels and tokens that the median
    defect covers where the model sees it, how many defects are smaller than a token, how many are
    too small to be seen (`too_small`), and the mean share of a picture that is cut off."""
    looks = [look for source in sources for look in source.pictures if look.size and look.photo]
    sizes = Counter(look.size for look in looks if look.size)
    found: dict[str, Any] = {}
    for name, sight in sights.items() if looks else ():
        seen = {size: sight(*size) for size in sizes}
        tokens = sorted(seen[size].tokens for size in sizes.elements())
        defects = [_defect(look, seen) for look in looks if _marked(look)]
        cut = [seen[size].cut for size in sizes.elements()]
        found[name] = {
            "tokens": [tokens[0], int(statistics.median(tokens)), tokens[-1]],
            "defects": len(defects),
            "median_pixels": round(statistics.median(d[0] for d in defects)) if defects else None,
            "median_tokens": round(statistics.median(d[1] for d in defects), 2)
            if defects
            else None,
            "under_a_token": sum(tokens < 1 for _, tokens in defects),
            "too_small": sum(pixels < least for pixels, _ in defects),
            "cut_off": round(statistics.mean(cut), 3),
        }
    return found


def too_small(looks: Iterable[Look], name: str, sight: Sight, least: int) -> Iterable[Problem]:
    """The defects with fewer than `least` pixels in the file or where `name` sees them."""
    seen: dict[tuple[int, int], Shown] = {}
    for look in looks:
        if not look.size or not _marked(look):
            continue
        seen.setdefault(look.size, sight(*look.size))
        pixels, tokens = _defect(look, seen)
        pixels = min(pixels, _marked(look) * look.size[0] * look.size[1])
        if pixels < least:
            file = named(look.sample)
            say = (
                f"{file}: its defect covers {pixels:.1f} pixels and {tokens:.3f} tokens of the "
                f"picture that {name} sees. Show larger pictures (max_pixels), or crop them around "
                "the defects."
            )
            yield Problem("small_defect", file, say)


def _marked(look: Look) -> float:
    return (look.photo.marked or 0.0) if look.photo else 0.0


def _defect(look: Look, seen: Mapping[tuple[int, int], Shown]) -> tuple[float, float]:
    """Pixels and tokens that a defect covers."""
    assert look.size is not None
    shown = seen[look.size]
    return _marked(look) * shown.pixels, _marked(look) * shown.fine
