"""`stage=audit`: what the completions of a run earn, and whether that can be trusted.

Reads a file or folder of JSON, JSONL or parquet (`stage.completions`), or the rollouts of a run
(`init`); prints tables and flags, and writes `audit.json` to the run folder. Rows hold `completion`
and `solution`, and `group` (else `id`, else `sample`) where several belong to one prompt. A row may
hold a list of each, and a completion may be a conversation; the predictions of an evaluation are
read as well.

Given a data set's `meta.csv` instead, it says where the vocabulary places each of its defect types,
and which it cannot place: worth a look before training on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from iad_r1 import rewards, stages
from iad_r1.data.readers import photos
from iad_r1.errors import ConfigError, DataError
from iad_r1.rewards.audit import Audit, AuditLimits, Flag, Record, audit
from iad_r1.schema import Evaluator
from iad_r1.settings.base import Count0
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder, write_text
from iad_r1.types import Solution

_COLOURS = {"collapse": "red", "gaming": "magenta", "data": "yellow"}
_SHOWN = 600  # characters of a completion


class Settings(StageSettings):
    """What is audited, against what, and from where on a number is flagged."""

    completions: str | None
    loose: str
    evaluator: Evaluator
    examples: Count0
    limits: AuditLimits


class Stage(stages.Stage):
    """Reads an earlier run, not its weights."""

    paths = ("stage.completions",)

    def problems(self, config: Config) -> Iterator[str]:
        stage = _settings(config)
        if config.init is None and stage.completions is None:
            yield (
                "stage=audit needs completions: those of a run, init=outputs/<name>/<timestamp>, "
                "or stage.completions=<JSONL or parquet file, or a folder of them>."
            )
        try:
            rewards.load(stage.loose, config.grid, location_format=config.location_format)
        except ConfigError as error:
            yield f"stage.loose={stage.loose}: {error}"

    def check_inputs(self, config: Config) -> None:
        """Also refuse rewards that read places in another form than the run has written them."""
        super().check_inputs(config)
        if config.init is None:
            return
        run = RunFolder.open(config.init)
        written = run.read_json("config.json").get("location_format", "words")
        if written != config.location_format:
            raise ConfigError(
                f"{run.path} wrote places as {written}, and location_format="
                f"{config.location_format}: its places would earn nothing. Add "
                f"location_format={written}, and rewards and stage.loose that read them."
            )

    def announce(self, config: Config, output: str) -> Iterator[str]:
        stage = _settings(config)
        yield f"audit of {stage.completions or config.init}"
        yield stages.row("rewards", f"{config.rewards.name} against {stage.loose}")
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        carry_out(config, folder, Console())


def _settings(config: Config) -> Settings:
    assert isinstance(config.stage, Settings)
    return config.stage


def carry_out(config: Config, folder: RunFolder, console: Console) -> Audit | None:
    """Audit the completions a configuration names; print what was found and keep it as JSON.

    Of a `.csv` only the defect types are looked up; nothing is scored, and None is returned.
    """
    stage, types = _settings(config), config.rewards.vocabulary
    source = Path(stage.completions or f"{config.init}/rollouts")
    if source.suffix == ".csv":
        _look_up(source, types or "default", console)
        return None
    loose = rewards.load(stage.loose, config.grid)
    result = audit(
        records=list(read_records(source)),
        rewards=rewards.load(config.rewards, config.grid),
        loose=loose,
        limits=stage.limits,
        vocabulary=rewards.vocabulary(types) if types is not None else None,
        examples=stage.examples,
        evaluator=stage.evaluator,
    )
    show(result, console, f"{config.rewards.name} on {source}", loose.name)
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    write_text(folder.path / "audit.json", text)
    return result


# --- reading -----------------------------------------------------------------------------------


def read_records(source: Path) -> Iterator[Record]:
    """The completions in a JSON, JSONL or parquet file, or in every file of the latter two kinds in
    a folder, sorted.

    Raises DataError naming file and row when there are none, or what a row lacks.
    """
    files = [source]
    if source.is_dir():
        files = sorted(f for f in source.iterdir() if f.suffix in (".jsonl", ".parquet"))
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"no completions in {source}: there is no .jsonl or .parquet file.")
    for file in files:
        for number, row in enumerate(_rows(file), 1):
            yield from _records(row, f"{file}, row {number}", file.stem)


def _rows(file: Path) -> Iterator[object]:
    """The rows of a parquet file, of a JSON array, or of a file with a JSON value per line."""
    if file.suffix == ".parquet":
        import pandas

        for row in pandas.read_parquet(file).to_dict("records"):
            yield {str(column): value for column, value in row.items()}
        return
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        yield from _decoded(text, f"{file} is not JSON")
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _decoded(line, f"{file}, line {number} is not JSON")


def _decoded(text: str, complaint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{complaint}: {error}.") from None


def _records(row: object, where: str, file: str) -> Iterator[Record]:
    """The completion of a row, or the completions of a group that it holds."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is no object with `completion` and `solution`, but {row!r:.60}.")
    if "completion" not in row:
        raise DataError(f"{where} has no `completion`. It has: {', '.join(map(str, row))}.")
    completions, solutions = _listed(row["completion"]), _solutions(row, where)
    if len(solutions) not in (1, len(completions)):
        raise DataError(f"{where}: {len(completions)} completions, but {len(solutions)} solutions.")
    solutions *= len(completions) // len(solutions)
    group = next((row[key] for key in ("group", "id", "sample") if row.get(key) is not None), None)
    name = None if group is None else f"{file}/{group}"
    if name is None and len(completions) > 1:
        name = where  # they stand together
    for completion, solution in zip(completions, solutions, strict=True):
        yield Record(_text(completion, where), _text(solution, where), name)


def _solutions(row: Mapping[str, Any], where: str) -> list[Any]:
    if "solution" in row:
        return _listed(row["solution"])
    if "gold_answer" not in row:
        raise DataError(f"{where} has neither `solution` nor `gold_answer`.")
    solution = str(row["gold_answer"])  # a line of predictions/*.jsonl; of a multiple choice, A
    if solution in ("yes", "no"):
        places = row.get("gold_location"), row.get("gold_type")
        solution = Solution(solution.capitalize(), *places).as_tags()
    return [solution]


def _listed(value: Any) -> list[Any]:
    """Several values of a row. A conversation, a list of messages, is one."""
    values = value.tolist() if hasattr(value, "tolist") else value  # of parquet
    if not isinstance(values, list) or not values or _is_message(values[0]):
        return [values]
    return values


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _text(value: Any, where: str) -> str:
    """A text, or what the assistant says in a conversation. Raises DataError for other values."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(map(_is_message, value)):
        said = [turn.get("content") for turn in value if turn["role"] == "assistant"]
        if len(said) == 1:
            return _text(said[0], where)
    parts = value if isinstance(value, list) else []
    if parts and all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        return "".join(str(part.get("text", "")) for part in parts)
    raise DataError(f"{where}: {value!r:.60} is no text and no conversation with one answer.")


# --- the types of a data set ------------------------------------------------------------------


def read_types(file: Path) -> Counter[str]:
    """How often each defect type occurs in the data set of a `meta.csv`, as training names it."""
    types = (sample.solution.type for sample in photos.samples(file.parent, "table"))
    return Counter(kind for kind in types if kind is not None)


def _look_up(file: Path, types: str, console: Console) -> None:
    known = rewards.vocabulary(types)
    counts = read_types(file)
    table = Table("defect type", title=f"{file} in the vocabulary {types!r}")
    table.add_column("pictures", justify="right")
    for column in ("group", "class", "type"):
        table.add_column(column)
    for label, count in counts.most_common():
        place = known.find(label)
        if place is None:
            table.add_row(label, str(count), "[red]not placed[/red]")
        else:
            table.add_row(
                label, str(count), place.group, place.type_class or "-", place.kind or "-"
            )
    console.print(table)
    if unplaced := known.unplaced(counts):
        console.print(
            f"{len(unplaced)} of {len(counts)} types cannot be placed: only their very words earn "
            "a type reward. Add them to a copy of the vocabulary (rewards.vocabulary=<file>)."
        )


# --- printing ----------------------------------------------------------------------------------


def show(result: Audit, console: Console, title: str, loose: str) -> None:
    """Print an audit: the components, the answers, the shares, then every flag."""
    console.print(f"[bold]audit[/bold] {title}: {result.n:,} completions, {result.groups:,} groups")
    console.print(_component_table(result))
    console.print(_answer_table(result))
    console.print(_share_table(result, loose))
    for flag in result.flags:
        console.print(_flag_panel(flag))
    if not result.flags:
        console.print("[green]nothing to flag[/green]")


def _component_table(result: Audit) -> Table:
    table = Table(title="what is earned, where the component applies")
    table.add_column("component", no_wrap=True)
    for column in ("n", "mean", "std", "min", "25 %", "50 %", "75 %", "max", "zero"):
        table.add_column(column, justify="right")
    for name, d in result.components.items():
        values = (d.mean, d.std, d.low, *d.quartiles, d.high)
        table.add_row(name, f"{d.n:,}", *(f"{v:.2f}" for v in values), f"{d.zero:.0%}")
    return table


def _answer_table(result: Audit) -> Table:
    table = Table("answer", title="answers against the truth")
    table.add_column("given", justify="right")
    table.add_column("true", justify="right")
    for answer in sorted({*result.answers, *result.gold}):
        shares = (result.answers.get(answer, 0.0), result.gold.get(answer, 0.0))
        table.add_row(answer, *(f"{share:.1%}" for share in shares))
    return table


def _share_table(result: Audit, loose: str) -> Table:
    table = Table("", title="signs")
    table.add_column("", justify="right")
    table.add_row("entropy of the answers", f"{result.entropy:.2f} bits")
    if result.group_entropy is not None and result.degenerate is not None:
        table.add_row("... within a group", f"{result.group_entropy:.2f} bits")
        table.add_row("groups that all earn the same", f"{result.degenerate:.1%}")
    table.add_row("unique completions", f"{result.distinct:.1%}")
    table.add_row("earned by the tags alone", f"{result.tag_only_gain:.3f}")
    table.add_row(f"paid more by {loose}", f"{result.disagreement:.1%}")
    for status, share in result.statuses.items():
        table.add_row(f"form: {status}", f"{share:.1%}")
    return table


def _flag_panel(flag: Flag) -> Panel:
    text = Text(flag.message)
    for record in flag.examples:
        text.append(f"\n\ntruth  {record.solution}\n", style="bold")
        text.append(record.completion[:_SHOWN])
    return Panel(text, title=flag.kind, border_style=_COLOURS[flag.kind], title_align="left")
