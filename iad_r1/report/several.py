"""Several runs in one report: which they are, what they share, and in what they differ.

A run's label stands where a run that trains names its stages. `runs.json` of the folder they were
put together in keeps what the report has to know of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iad_r1.errors import DataError
from iad_r1.report import wording
from iad_r1.store.run_folder import write_json

FILE = "runs.json"
# Of a run and not of its weights, so that they are no difference to read.
_OF_THE_RUN = ("name", "resume", "dry_run", "stage", "tracking")


@dataclass(frozen=True)
class Member:
    """One of the runs. `stage` is what its own folder calls the weights that are shown."""

    label: str
    folder: str
    stage: str
    config: Mapping[str, Any]
    commit: str | None  # of the code
    data: Mapping[str, str]  # fingerprints of what was read, by section
    paper: Sequence[Mapping[str, Any]]  # the paper's numbers beside those of all its weights
    mmad: Sequence[Mapping[str, Any]]  # the same of MMAD's


def write(folder: Path, members: Sequence[Member]) -> None:
    """Keep them in `runs.json`."""
    write_json(folder / FILE, [asdict(member) for member in members])


def read(folder: Path) -> tuple[Member, ...]:
    """The runs of a folder that holds several; none of any other. DataError if it is broken."""
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        return tuple(Member(**row) for row in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is broken ({error}). Put the runs together again.") from error


def refuse(folder: Path) -> None:
    """DataError if the folder holds several runs, where one is asked for."""
    if members := read(folder):
        raise DataError(
            f"{folder} holds several runs already. Name them instead: "
            + ", ".join(member.folder for member in members)
            + "."
        )


def shared(members: Sequence[Member]) -> dict[str, Any]:
    """The sections of the configuration that are the same in all runs."""
    first, *others = (member.config for member in members)
    return {
        section: value
        for section, value in first.items()
        if section not in _OF_THE_RUN and all(other.get(section) == value for other in others)
    }


def differences(members: Sequence[Member]) -> list[tuple[str, list[str]]]:
    """What is not the same in all runs: its name, and the value in each."""
    flat = [
        {
            **{name: value for name, value in wording.flat(member.config)
               if name.partition(".")[0] not in _OF_THE_RUN},
            "commit of the code": member.commit or wording.NOTHING,
            **{f"fingerprint of {name}": value[:12] for name, value in member.data.items()},
        }
        for member in members
    ]  # fmt: skip
    names = dict.fromkeys(name for of_run in flat for name in of_run)
    rows = [(name, [of_run.get(name, wording.NOTHING) for of_run in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
