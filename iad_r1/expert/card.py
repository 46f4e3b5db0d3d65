"""The data card: what is in the lists and where it comes from, in the hub's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from iad_r1.expert.choice import LISTS
from iad_r1.expert.lists import file_name
from iad_r1.settings.config import Config
from iad_r1.settings.data import reader
from iad_r1.settings.expert import ExpertSettings
from iad_r1.store.run_folder import write_text

UNKNOWN = "unknown"  # as the hub spells a licence that nobody has stated


def write(
    out: Path,
    config: Config,
    found: Mapping[str, Any],
    took: Mapping[str, Any],
    base: Path,
    manifest: Mapping[str, Any],
) -> None:
    """Write README.md beside the lists.

    Args:
        found: what `lists.write` returns.
        took: what the teacher says that writing took.
        base: what the paths of pictures start from.
    """
    write_text(out / "README.md", text(config, found, took, base, base == out, manifest))


def text(
    config: Config,
    found: Mapping[str, Any],
    took: Mapping[str, Any],
    base: Path,
    holds_pictures: bool,
    manifest: Mapping[str, Any],
) -> str:
    """The data card in Markdown with the hub's front matter."""
    stage = config.stage
    assert isinstance(stage, ExpertSettings)
    environment = Environment(
        loader=PackageLoader("iad_r1", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown of our own values, not HTML
    )
    total = sum(sum(labels.values()) for labels in found["kept"].values())
    parts = config.data.members()
    return environment.get_template("dataset_card.md.j2").render(
        config=config,
        stage=stage,
        found=found,
        took=took,
        total=total,
        size=size(total),
        licence=stage.licence or UNKNOWN,
        sources={p.name: getattr(reader(p.name), "SOURCE", None) for p in parts.values()},
        files={f"{part}{'_1shot' * n}": file_name(part, n) for part in LISTS for n in stage.shots},
        base=None if holds_pictures else base,
        data=manifest["data"],
        code=manifest.get("code") or {"commit": None, "dirty": None},
    )


def size(total: int) -> str:
    """The hub's word for a number of items."""
    least, power = "", 3
    while total >= 10**power:
        least, power = f"{_thousands(power)}<", power + 1
    return f"{least}n<{_thousands(power)}"


def _thousands(power: int) -> str:
    """10 to a power, as the hub writes it: 10K, 100M."""
    return f"{10 ** (power % 3)}{' KMBT'[power // 3]}"
