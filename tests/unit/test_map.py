"""The map in CONTRIBUTING.md is the code: every module is on it, and imports point up it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROW = re.compile(r"^\| (?P<where>`[^|]+`) \|", re.M)


def rooms(text: str) -> dict[str, int]:
    """Every place the map names, such as `iad_r1/judge/`, with the number of its row."""
    return {
        place: number
        for number, row in enumerate(ROW.finditer(text))
        for place in re.findall(r"`([^`]+)`", row["where"])
        if place.startswith("iad_r1/")
    }


def room_of(module: str, places: dict[str, int]) -> int | None:
    """The row of a module's path: that of the longest place it lies in."""
    holding = [place for place in places if module == place or module.startswith(place)]
    return places[max(holding, key=len)] if holding else None


def imported(file: Path, root: Path) -> Iterator[str]:
    """Paths of the modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            while parts[0] == "iad_r1" and parts:
                path = Path(*parts)
                found = [path.with_suffix(".py"), path / "__init__.py"]
                there = next((p for p in found if (root / p).is_file()), None)
                if there is not None:
                    yield there.as_posix()
                    break
                parts.pop()


def against(root: Path, places: dict[str, int]) -> list[str]:
    """A line for each module the map does not name, and for each import that points down it."""
    wrong = []
    for file in sorted((root / "iad_r1").rglob("*.py")):
        module = file.relative_to(root).as_posix()
        here = room_of(module, places)
        if module == "iad_r1/__init__.py":
            continue
        if here is None:
            wrong.append(f"{module} is not on the map of CONTRIBUTING.md")
            continue
        for other in imported(file, root):
            there = room_of(other, places)
            if there is not None and there > here:
                wrong.append(f"{module} imports {other}, which stands below it on the map")
    return wrong


@pytest.fixture
def places(repository: Path) -> dict[str, int]:
    return rooms((repository / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_every_module_is_on_the_map_and_imports_point_up_it(repository, places):
    assert not (wrong := against(repository, places)), "\n".join(wrong)


def test_every_place_on_the_map_is_there(repository, places):
    assert len(places) > 10
    assert not [place for place in places if not (repository / place).exists()]


def test_an_import_against_the_map_and_a_module_off_it_are_named(tmp_path):
    (tmp_path / "iad_r1" / "low").mkdir(parents=True)
    (tmp_path / "iad_r1" / "high.py").write_text("def f():\n    from iad_r1.low import deep\n")
    (tmp_path / "iad_r1" / "low" / "deep.py").write_text("import iad_r1.high\n")
    (tmp_path / "iad_r1" / "lost.py").write_text("")
    found = against(tmp_path, rooms("| `iad_r1/high.py` | a |\n| `iad_r1/low/` | b |\n"))
    assert found == [
        "iad_r1/high.py imports iad_r1/low/deep.py, which stands below it on the map",
        "iad_r1/lost.py is not on the map of CONTRIBUTING.md",
    ]
