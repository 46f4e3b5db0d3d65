"""The published backbones at their true size, described without downloading anything.

Each `<name>.json` beside this file holds what the hub's own files say of one backbone:

    hub             the checkpoint it describes
    source          where its values are from; `unverified` names those that could not be checked
    published       what others say of its size: `parameters` (a count taken from the checkpoint, or
                    billions as printed, in quotes) and the language model it was built from
    config          config.json
    generation      generation_config.json
    processor       preprocessor_config.json, with what else the processor is told
    tokenizer       special tokens and their ids, end of answer, padding

Reading them needs the standard library alone: `stage=plan` computes from `config` before anything
is loaded. `published.build` builds models (`weights=random`) and processors from the same files,
with the chat templates of `backbones.twins`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iad_r1.errors import ConfigError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The backbones described here, sorted: the names of `conf/backbone`, less `tiny`."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read(name: str) -> Mapping[str, Any]:
    """What is known of one backbone (keys: see this module). ConfigError if it is not described."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        raise ConfigError(
            f"the true size of backbone={name} is not described here. "
            f"Described are: {', '.join(names())}."
        )
    return json.loads(file.read_text(encoding="utf-8"))
