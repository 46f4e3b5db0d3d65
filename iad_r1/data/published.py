"""How many test pictures the public data sets hold, class by class where that is known.

`published.csv`: counts of the test lists behind the papers' numbers (DAGM, DTD, MPDD, SDD), of
VisA's split table, of the data sets' own papers, and of MMAD. A set may have several variants.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_suffix(".csv")
TOTAL = ""  # stands for all products
Counts = Mapping[str, tuple[int, int]]  # of a product: good, defective


@cache
def variants(name: str) -> Mapping[str, Counts]:
    """The published counts of a data set, by variant; empty where none are known."""
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    with FILE.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["set"] == name:
                counts = int(row["good"]), int(row["defective"])
                found[row["variant"]][row["product"]] = counts
    return dict(found)


def differences(name: str, here: Counts) -> Iterator[str]:
    """Where the counts `here` (of every product) are those of no variant: the classes that differ
    from the nearest one, else the totals."""
    known = variants(name)
    if not known or not here:
        return
    total = sum(good for good, _ in here.values()), sum(bad for _, bad in here.values())
    variant, counts = min(known.items(), key=lambda item: _apart(item[1][TOTAL], total))
    classes = {product: n for product, n in counts.items() if product != TOTAL}
    if not classes and total != counts[TOTAL]:
        yield f"all classes: {_said(total)} here, published are {_said(counts[TOTAL])} ({variant})"
    for product in [*classes, *sorted(here.keys() - classes.keys())] if classes else ():
        found, told = here.get(product, (0, 0)), classes.get(product, (0, 0))
        if found != told:
            yield f"{product}: {_said(found)} here, published are {_said(told)} ({variant})"


def _apart(one: tuple[int, int], other: tuple[int, int]) -> int:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])


def _said(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,} good and {counts[1]:,} defective"
