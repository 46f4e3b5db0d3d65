"""Lists of JSON in which a value is null or of another kind: read, or refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_data_exports as exports
from miniatures import industrial_test, mmad, real_iad

from iad_r1.command import compose
from iad_r1.errors import DataError
from iad_r1.settings.data import reader
from iad_r1.types import Sample

Read = Callable[[], list[Sample]]
Place = tuple[str | int, ...]


def benchmark(name: str, root: Path, *options: str) -> Read:
    settings = compose.compose(
        ["stage=evaluate", "backbone=qwen25vl_3b", "tracking=none", f"benchmark={name}",
         f"benchmark.{name}.root={root}", *options]
    ).benchmark[name]  # fmt: skip
    return lambda: list(reader(name).read(settings, 0))


def planted(name: str, root: Path) -> tuple[Read, list[Path]]:
    """A data set in miniature: how it is read, and the lists that it is read from."""
    if name == "mmad":
        mmad(root)
        read = benchmark(name, root, "benchmark.mmad.knowledge=true")
    elif name == "real_iad":
        real_iad(root)
        read = benchmark(name, root)
    elif name == "industrial_test":
        industrial_test(root)
        read = benchmark(name, root, f"benchmark.industrial_test.lists={root}/lists")
    else:
        getattr(exports, f"write_{name}")(root, exports.PARTS)
        return lambda: exports.read(root), sorted(root.rglob("*.json"))[-1:]
    return read, sorted(root.rglob("*.json"))


def places(content: Any, above: Place = ()) -> Iterator[Place]:
    """Every value of a file; of a list those of its first item alone."""
    yield above
    if isinstance(content, dict):
        for key in [*content][: None if above else 3]:
            yield from places(content[key], (*above, key))
    elif isinstance(content, list) and content:
        yield from places(content[0], (*above, 0))


def changed(content: Any, place: Place, value: Any) -> Any:
    found = copy.deepcopy(content)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


SETS = ["mmad", "real_iad", "industrial_test", "coco", "labelme", "label_studio"]


@pytest.mark.parametrize("name", SETS)
def test_a_value_that_is_null_or_of_another_kind_is_read_or_refused_by_name(name, tmp_path):
    read, files = planted(name, tmp_path)
    refused = 0
    assert read()
    for file in files:
        text = file.read_text()
        content = json.loads(text)
        for place in list(places(content))[1:]:
            for value in (None, [None], 5):
                file.write_text(json.dumps(changed(content, place, value)))
                try:
                    read()
                except DataError as error:
                    refused += 1
                    assert ".json" in str(error) or str(tmp_path) in str(error)
        file.write_text(text)
    assert refused > 5
