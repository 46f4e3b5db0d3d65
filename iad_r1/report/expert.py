"""What `stage=expert_ad` has built, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from iad_r1.errors import setting

NAMES = {"sft": "PA-SFT", "grpo": "SC-GRPO"}


def show(found: Mapping[str, Any], out: Path, base: Path, console: Console) -> None:
    """Counts, reasons, variety, and how to train on it."""

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say("")
    for part, labels in found["kept"].items():
        total = sum(labels.values())
        say(f"  {NAMES[part]:<9} {total:,} items: {labels['good']:,} good, "
            f"{labels['defective']:,} defective")  # fmt: skip
    left_out = found["rejected"]
    why = ", ".join(f"{reason} {n:,}" for reason, n in left_out.items()) or "nothing"
    say(f"  {'left out':<9} {sum(left_out.values()):,}: {why}")
    if review := found["review"]:
        counts = ", ".join(f"{kind} {n:,}" for kind, n in review["items"].items())
        say(f"  {'review':<9} {len(review['reviewers'])} reviewers: {counts}")
    said = found["variety"]["all"]
    distinct = ", ".join(f"{n} {said[f'distinct_{n}']:.1%}" for n in (1, 2, 3))
    say(f"  {'variety':<9} distinct n-grams: {distinct} of {said['words']:,} words; the most "
        f"frequent sentence is in {said['sentence_share']:.1%} of the texts: "
        f"{said['sentence']}")  # fmt: skip
    say(f"  {'lists':<9} {out}\n")
    say("Train on it:")
    say(f"  {command(out, base)}")


def command(out: Path, base: Path) -> str:
    """What trains on the lists in a folder."""
    words = ["python run.py data=expert_ad", setting("data.root", out)]
    words += ["data.sft=sft.json data.rl=grpo.json"]
    words += [setting("data.images", base)] if base != out else []
    return " ".join(words)
