"""Data sets below one root, each in a folder of one of its usual names (`FOLDERS` of its reader).

The root is `benchmark.root`. A data set that was given a root of its own keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from iad_r1.settings import modules
from iad_r1.settings.data import READERS


def fill(plain: Mapping[str, Any]) -> Iterator[str]:
    """Give every data set of a run its root, and take `benchmark.root` away. Yields a sentence for
    each that is not there, with where it is obtained."""
    root = plain["benchmark"].pop("root", None)
    wanted = list(_without_root(plain))
    if not wanted:
        return
    if root is None:
        if len(wanted) > 1:  # of a single one, its own setting says more
            usual = ", ".join(f"{reader.FOLDERS[0]}/" for _, _, reader in wanted)
            yield (
                f"{', '.join(f'{key}.root' for key, _, _ in wanted)} have no values. Set the "
                f"folder that holds {usual}: benchmark.root=<folder>, or the environment variable "
                "IAD_DATA."
            )
        return
    if not Path(root).is_dir():
        yield f"benchmark.root={root}: there is no such folder."
        return
    for key, section, reader in wanted:
        found = [path for name in reader.FOLDERS if (path := _below(Path(root), name))]
        if found:
            section["root"] = str(found[0])
            continue
        instead = ", or name the others: benchmark=[...]" if key.startswith("benchmark.") else ""
        yield (
            f"{key}: {root} holds no {' or '.join(f'{name}/' for name in reader.FOLDERS)}. "
            f"{reader.SOURCE} If it lies elsewhere, type {key}.root=<folder>{instead}."
        )


def _without_root(plain: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """The sections of public data sets that have no root, with their readers."""
    sections = {"data": plain["data"]}
    sections |= {f"data.parts.{name}": s for name, s in plain["data"].get("parts", {}).items()}
    sections |= {f"benchmark.{name}": found for name, found in plain["benchmark"].items()}
    for key, section in sections.items():
        if section.get("name") in modules.names(READERS):
            reader = modules.find(READERS, section["name"])
            if hasattr(reader, "FOLDERS") and section.get("root") is None:
                yield key, section, reader


def _below(root: Path, name: str) -> Path | None:
    """The folder of that name, in capitals or not."""
    for part in Path(name).parts:
        alike = (path for path in sorted(root.iterdir()) if path.name.lower() == part.lower())
        found = next(filter(Path.is_dir, alike), None)
        if found is None:
            return None
        root = found
    return root
