"""The file that `--json` writes: one flat object, `ratio` first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
