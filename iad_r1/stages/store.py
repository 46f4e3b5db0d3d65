"""`stage=store`: what the runs in outputs/ share, how large it is, what it saves, and its removal.

    python run.py stage=store
    python run.py stage=store remove=[evaluate]
    python run.py stage=store remove=[all] older_than=30

Prints a table and writes `store.json`. A result that a run is making or taking now is not removed.
Runs keep what they took: their files are links of their own (`docs/store.md`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, get_args

from iad_r1 import stages
from iad_r1.errors import ConfigError
from iad_r1.settings.base import AtLeast0
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.keys import Stage as Kept
from iad_r1.store.progress import duration
from iad_r1.store.run_folder import RunFolder

if TYPE_CHECKING:  # it loads torch
    from iad_r1.store.shared import Entry, Store

MIB = 2**20
DAY = 24 * 60 * 60
EVERY = "all"


class Settings(StageSettings):
    """What to remove."""

    remove: list[str]
    older_than: AtLeast0 | None


@dataclass(frozen=True)
class Row:
    """A result in the store. `alone` are the bytes that lie nowhere else: what its removal frees.
    Of a damaged one, whose `damage` is said, nothing else is known."""

    key: str
    stage: str = ""
    days: float = 0.0
    bytes: int = 0
    alone: int = 0
    seconds: float = 0.0
    run: str = ""
    taken: int = 0
    damage: str | None = None

    @property
    def saved(self) -> float:
        """Seconds that were not spent again."""
        return self.seconds * self.taken


class Stage(stages.Stage):
    """Reads and removes results, and needs no weights."""

    saves = False
    shortcuts = ("remove", "older_than")

    def problems(self, config: Config) -> Iterator[str]:
        settings = _settings(config)
        if settings.older_than is not None and not settings.remove:
            yield (
                f"older_than={settings.older_than:g} says what to remove, and remove=[] removes "
                "nothing. Use remove=[all], or leave older_than out."
            )

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield "what runs share"
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.store.shared import Store

        store, settings = Store(folder.outputs), _settings(config)
        rows = list(listed(store))
        folder.write_json("store.json", [asdict(row) for row in rows])
        show(rows)
        for row in chosen(rows, settings.remove, settings.older_than):
            gone = store.remove(row.key)
            print(f"{row.key}: {'removed' if gone else 'a run is using it now, so it stays'}")


def listed(store: Store) -> Iterator[Row]:
    """A row for each result, those that cost the most first."""
    taken = Counter(store.taken())
    rows = []
    for key, entry, damage in store.entries():
        row = Row(key, damage=damage) if entry is None else _row(entry)
        rows.append(Row(**{**asdict(row), "taken": taken[key]}))
    yield from sorted(rows, key=lambda row: row.seconds, reverse=True)


def _row(entry: Entry) -> Row:
    about = entry.about
    age = datetime.now().astimezone() - datetime.fromisoformat(about["made"])
    held = [file.stat() for file in entry.files().values() if file.is_file()]
    alone = sum(found.st_size for found in held if found.st_nlink == 1)
    run = "/".join(about["run"].split("/")[-2:])
    return Row(
        key=entry.key,
        stage=about["stage"],
        days=age.total_seconds() / DAY,
        bytes=entry.bytes,
        alone=alone,
        seconds=about["seconds"],
        run=run,
    )


def chosen(rows: Sequence[Row], named: Sequence[str], older_than: float | None) -> list[Row]:
    """The rows that are named by key, stage or `all`, and are older than so many days.

    ConfigError that names what is none of these.
    """
    known = {EVERY, *get_args(Kept), *(row.key for row in rows)}
    if unknown := [name for name in named if name not in known]:
        raise ConfigError(
            f"remove=[{','.join(unknown)}]: no result has this key. Use a key of the list, "
            f"{', '.join(get_args(Kept))} or {EVERY}."
        )
    return [
        row
        for row in rows
        if {row.key, row.stage, EVERY} & set(named)
        and (older_than is None or row.days > older_than)
    ]


def show(rows: Sequence[Row]) -> None:
    """The table, and what it adds up to."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column, right in (("key", False), ("stage", False), ("days", True), ("MiB", True),
                          ("cost", True), ("taken", True), ("made by", False)):  # fmt: skip
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        if row.damage is not None:
            table.add_row(row.key, Text(f"damaged: {row.damage}"))
            continue
        size, cost = f"{row.bytes / MIB:.1f}", duration(row.seconds)
        table.add_row(row.key, row.stage, f"{row.days:.1f}", size, cost, str(row.taken), row.run)
    console = Console()
    if rows:
        console.print(table)
    total, alone = sum(row.bytes for row in rows) / MIB, sum(row.alone for row in rows) / MIB
    console.print(
        f"{len(rows)} results, {total:.1f} MiB, of which {alone:.1f} MiB lie here alone. "
        f"Runs that took them were spared {duration(sum(row.saved for row in rows))}.",
        highlight=False,
    )


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, Settings)
    return config.stage
