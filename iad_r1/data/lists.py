"""What a list of samples is: equal exactly when whatever a stage could see of it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from iad_r1.data.cache import Kept
from iad_r1.store.keys import digest
from iad_r1.types import Cut, Mask, Sample, Shapes


def fingerprint(lists: Mapping[str, Iterable[Sample]], kept: Kept) -> str:
    """Of the content of all pictures, masks and references, what is said of them, and their order;
    wherever their files are. `kept` knows files that were read before."""
    prints = _Prints(kept)
    facts = {name: [prints.of(sample) for sample in samples] for name, samples in lists.items()}
    return _hash(json.dumps(facts, sort_keys=True).encode())


class _Prints:
    """The fingerprints of samples; of a reference that many samples share, taken once."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.references: dict[int, tuple[Sample, str]] = {}  # by id(), which holds while it lives

    def of(self, sample: Sample) -> str:
        asked, solution = sample.question, sample.solution
        facts = [
            [sample.id, sample.dataset, sample.split, sample.product, sample.shots, sample.target],
            [solution.answer, solution.location, solution.type],
            [asked.text, asked.options and list(asked.options.items()), asked.listed],
            [asked.knowledge, asked.subtask, asked.prompt],
            self._shown(sample.image),
            self._shown(sample.mask),
            [self._reference(reference) for reference in sample.references],
        ]
        return _hash(json.dumps(facts).encode())

    def _reference(self, sample: Sample) -> str:
        known = self.references.get(id(sample))
        if known is None:
            known = self.references[id(sample)] = sample, self.of(sample)
        return known[1]

    def _shown(self, shown: Path | Cut | Mask | Shapes | Image | None) -> list[Any] | None:
        if isinstance(shown, Image):
            return ["drawn", shown.mode, shown.size, _hash(shown.tobytes())]
        if isinstance(shown, Path):
            return ["file", self._file(shown)]
        if isinstance(shown, Cut):
            return ["cut", self._file(shown.file), shown.box]
        if isinstance(shown, Mask):
            how = repr(replace(shown, files=()))
            return ["mask", how, [self._file(file) for file in shown.files]]
        return shown and ["shapes", repr(shown)]

    def _file(self, file: Path) -> str:
        return self.kept.found([file], ["sha256"], lambda: {"sha256": digest(file)})["sha256"]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
