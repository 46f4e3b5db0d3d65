"""The file that `--json` writes: one flat object, `ratio` first."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def write(path: Path, ratio: float, values: Mapping[str, Any]) -> None:
    """Write `ratio` (the peer's cost ÷ ours), then `values`, nested keys joined by dots."""
    found = {"ratio": ratio, **{k: v for k, v in flat(values) if k != "ratio"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace(" ", "_").replace(",", "")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def environment(**more: Any) -> dict[str, Any]:
    """What numbers depend on, `more` first. `load` is the machine's load average now."""
    from iad_r1.store.manifest import processor  # not in a process whose memory is measured

    git = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return {
        **more,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }
