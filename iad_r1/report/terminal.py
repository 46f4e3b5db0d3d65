"""What a run prints when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iad_r1.errors import setting
from iad_r1.judge import mmad
from iad_r1.report import published, several, wording
from iad_r1.store.manifest import chosen_weights, taken
from iad_r1.store.progress import duration
from iad_r1.store.run_folder import RunFolder

PLAIN_WIDTH = 140  # columns of a summary written to a file or a pipe


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """The table at the end of a run: every stage before and after, and where things are.

    `summary` is the content of `summary.json`.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    results, members = summary.get("results") or [], several.read(folder)
    console.print()
    console.print(_headline(summary, folder, members), markup=False, highlight=False)
    if results:
        changes, labels = summary.get("comparisons") or [], [member.label for member in members]
        console.print(_table(results, changes, labels))
        marked = (
            " A change whose interval includes zero is marked ~: these images cannot tell it from "
            "no change."
        )
        console.print(
            "Percent. In brackets: 95 % intervals."
            + (marked if changes and not members else "")
            + _averaged(results),
            style="dim",
            highlight=False,
        )
        if beside := published.of_paper(folder, results):
            console.print(_published(beside))
            for line in _notes(beside):
                console.print(line, style="dim", markup=False, highlight=False)
        for row in summary.get("mmad") or []:
            console.print(_mmad(row))
            console.print(_mmad_totals(row), style="dim", highlight=False)
        for row in published.of_mmad(folder, summary.get("mmad") or []):
            console.print(_mmad_published(row))
            for line in _mmad_published_notes(row):
                console.print(line, style="dim", markup=False, highlight=False)
        if chosen := chosen_weights(RunFolder(folder).read_json("manifest.json")):
            console.print(chosen, style="dim", markup=False, highlight=False)
        for line in (*_differences(results, changes if members else []), *summary.get("notes", [])):
            console.print(line, markup=False, highlight=False)
        lines = (*_patches(summary), *_guessing(results), *_boxes(results), *_reasoning(results))
        for line in lines:
            console.print(line, style="dim", highlight=False)
    for line in taken(RunFolder(folder).read_json("manifest.json")):
        console.print(line, style="dim", markup=False, highlight=False)
    for name, text in _where_next(results, folder, members):
        console.print(f"{name:<8} {text}", markup=False, highlight=False, soft_wrap=True)


def _headline(summary: Mapping[str, Any], folder: Path, members: Sequence[several.Member]) -> str:
    config = RunFolder(folder).read_json("config.json")
    parts = [str(config.get("name") or folder.parent.name)]
    if members:
        config = several.shared(members)
        parts = [f"{len(members)} runs"]
    for section in ("backbone", "data", "benchmark", "rewards", "tuning"):
        name = wording.chosen(config, section)
        parts += [f"{section}={name}"] if name else []
    parts += [f"seed={config['seed']}"] if "seed" in config else []
    spent = sum((summary.get("seconds") or {}).values())
    return " ".join(parts) + (f"      {duration(spent)}" if spent else "")


def _averaged(results: Sequence[Mapping[str, Any]]) -> str:
    if not any("of" in row for row in results):
        return ""
    return (
        " The average is the unweighted mean of the benchmarks, each pooled over its images: the "
        "papers average balanced accuracy so."
    )


def _patches(summary: Mapping[str, Any]) -> Iterator[str]:
    """What nearest good patches reach, alone or on the pictures of a model."""
    alone = [row for row in summary["results"] if row["stage"] == wording.PATCHCORE]
    for row in [*alone, *(summary.get("baselines") or [])]:
        metrics = [*wording.headline(row)[:1], "auroc"]
        said = [
            f"{wording.METRIC_NAMES[name]} {_value(row, name)}"
            for name in metrics
            if row.get(name) is not None
        ]
        name = wording.stage_name(row["stage"])
        yield f"{escape(str(row['split']))}: {name}, untrained, reach {', '.join(said)}."


def _guessing(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What location accuracy is to be compared with, once for each set of pictures."""
    for split, places in {row["split"]: row.get("places") for row in results}.items():
        if places and (hit := places["chance"]["hit"])["uniform"] is not None:
            center = hit["always_center"]
            middle = "" if center is None else f", the center for {wording.percent(center)} %"
            yield escape(
                f"{split}: a random cell is the right place for {wording.percent(hit['uniform'])} %"
                f"{middle}, {hit['best_cell']}, the most frequent, for "
                f"{wording.percent(hit['best_constant'])} %."
            )


def _boxes(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How boxes overlap with the defects, a line for each stage and set of pictures."""
    for row in results:
        if found := row.get("boxes"):
            yield escape(
                f"{row['split']}, {row['shots']}-shot, {wording.stage_name(row['stage'])}: IoU "
                f"{wording.percent(found['iou'])} %, at least 0.5 for "
                f"{wording.percent(found['hit_50'])} %, pointing at "
                f"{wording.percent(found['pointed'])} %, F1 of pixels "
                f"{wording.percent(found['pixel_f1'])} % of {found['n']:,} defects (a missed one "
                f"is 0); IoU of the whole picture {wording.percent(found['chance']['whole'])} %."
            )


def _reasoning(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether answers follow from their reasoning, a line for each stage and set of pictures."""
    for row in results:
        if found := row.get("reasoning"):
            unlike = [f"{found[name]:,} name another {name}" for name in ("place", "type")]
            defects = (
                f"; of {found['defects']:,} reasoned defects {' and '.join(unlike)} than the tags"
            )
            yield escape(
                f"{row['split']}, {row['shots']}-shot, {wording.stage_name(row['stage'])}: of "
                f"{found['n']:,} reasonings {found['consistent_right']:,} bear out a right answer, "
                f"{found['consistent_wrong']:,} a wrong one, {found['contradictory']:,} contradict "
                f"their answer ({found['defect_but_no']:,} find a defect before No, "
                f"{found['sound_but_yes']:,} find none before Yes), {found['untold']:,} cannot be "
                f"told by rule{defects if found['defects'] else ''}."
            )


def _differences(
    results: Sequence[Mapping[str, Any]], changes: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """How each of several runs differs from the first, a line for each set of pictures."""
    for row in wording.leading(changes, results):
        yield wording.differs(row)


def _table(
    results: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> Table:
    """A column for each stage and the change of the last one, or for each of several runs."""
    found = dict.fromkeys(row["stage"] for row in results)
    stages = labels or sorted(found, key=wording.stage_order)
    comparisons = [] if labels else changes
    groups = list(dict.fromkeys((row["split"], row["shots"]) for row in results))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("images", "shots", "n", ""):
        table.add_column(column, justify="right" if column == "n" else "left", no_wrap=True)
    for stage in stages:
        table.add_column(wording.stage_name(stage), justify="right")
    if comparisons:
        table.add_column("last change", justify="right")
    for split, shots in groups:
        rows = {r["stage"]: r for r in results if (r["split"], r["shots"]) == (split, shots)}
        here = [c for c in comparisons if (c["split"], c["shots"]) == (split, shots)]
        for index, metric in enumerate(wording.headline(next(iter(rows.values())))):
            first = index == 0
            n = next(iter(rows.values()))["n"]
            cells = [_value(rows.get(stage), metric) for stage in stages]
            cells += [_change(here, stages[-1], metric)] if comparisons else []
            lead = [escape(str(split)), f"{shots}-shot", f"{n:,}"] if first else ["", "", ""]
            table.add_row(*lead, wording.METRIC_NAMES[metric], *cells)
        table.add_section()
    return table


def _published(beside: Sequence[Mapping[str, Any]]) -> Table:
    """The paper's numbers and ours."""
    models = dict.fromkeys(row["model"] for row in beside)
    title = f"Beside the paper's {', '.join(models)}: balanced accuracy"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    named = ["run"] if "run" in beside[0] else []
    for column in (*named, "images", "method"):
        table.add_column(column)
    for column in ("paper", "here", "difference"):
        table.add_column(column, justify="right")
    for row in beside:
        change = f"{wording.points(row['difference'])} {wording.interval(row['ci95'])}".rstrip()
        change = change if wording.clear(row) or not row["ci95"] else f"~ {change}"
        ours = f"{wording.percent(row['ours'])} {wording.interval(row['ours_ci95'])}".rstrip()
        table.add_row(
            *(escape(row[name]) for name in named),
            f"{row['dataset']} {row['shots']}-shot",
            escape(row["method"]),
            wording.percent(row["published"]),
            escape(ours),
            "not comparable" if row["incomparable"] else escape(change),
        )
    return table


def _notes(beside: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why numbers are not comparable, once each, and what to know of single ones."""
    for why in dict.fromkeys(row["incomparable"] for row in beside):
        if why:
            yield f"Not comparable with the paper: {why}."
    for row in beside:
        if row["notes"]:
            place = f"{row['dataset']} {row['shots']}-shot, {row['method']}"
            place = f"{row['run']}: {place}" if "run" in row else place
            yield f"{place}: {'; '.join(row['notes'])}."


def _mmad(row: Mapping[str, Any]) -> Table:
    """MMAD by set and subtask, an unreadable answer wrong."""
    how = ", the likeliest letter answers" if row.get("choices") == "logprob" else ""
    title = f"MMAD, {wording.stage_name(row['stage'])}, {row['shots']}-shot{how}"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    names = [name for name in row["average"] if row["average"][name] is not None]
    for column in ("", *names, "unreadable"):
        table.add_column(column.replace(" ", "\n"), justify="right" if column else "left")
    for name, of_set in row["sets"].items():
        cells = [wording.percent(of_set["strict"].get(task)) for task in names]
        table.add_row(name, *cells, f"{of_set['invalid']:,} of {of_set['n']:,}")
    table.add_row("average", *(wording.percent(row["average"][task]) for task in names), "")
    return table


def _mmad_published(row: Mapping[str, Any]) -> Table:
    """MMAD's published accuracies and ours: the averages of the sets, or where some are missing of
    those that were asked."""
    run = f" ({row['run']})" if "run" in row else ""
    title = f"Beside MMAD's published {row['model']}, {row['shots']}-shot{run}"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("sets", "subtask", "published", "here", "difference"):
        table.add_column(column, justify="left" if column in ("sets", "subtask") else "right")
    whole = [each for each in row["rows"] if each["dataset"] == mmad.AVERAGE]
    for each in whole or [each for each in row["rows"] if each["subtask"] == "average"]:
        change = f"{wording.points(each['difference'])} {wording.interval(each['ci95'])}".rstrip()
        change = change if wording.clear(each) or not each["ci95"] else f"~ {change}"
        table.add_row(
            "all" if whole else each["dataset"],
            each["subtask"],
            wording.percent(each["published"]),
            wording.percent(each["ours"]),
            "not comparable" if row["incomparable"] else escape(change),
        )
    return table


def _mmad_published_notes(row: Mapping[str, Any]) -> Iterator[str]:
    if row["incomparable"]:
        yield f"Not comparable with MMAD's numbers: {row['incomparable']}."
    for note in row["notes"]:
        yield f"{row['model']}: {note}."


def _mmad_totals(row: Mapping[str, Any]) -> str:
    return (
        f"MMAD in all {wording.percent(row['strict'])} {wording.interval(row['ci95'])}, every "
        f"question counted; unreadable answers left out: {wording.percent(row['lenient'])}; as the "
        f"released script counts: {wording.percent(row['released']['average'])}."
    )


def _value(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None or row.get(metric) is None:
        return wording.NOTHING
    bounds = (row.get("ci95") or {}).get(metric)
    return escape(f"{wording.percent(row[metric])} {wording.interval(bounds)}".rstrip())


def _change(changes: Sequence[Mapping[str, Any]], last: str, metric: str) -> str:
    """The paired difference of the last stage to the one before it."""
    for row in changes:
        if (row["to"], row["metric"]) == (last, metric) and row["delta"] is not None:
            text = f"{wording.points(row['delta'])} {wording.interval(row['ci95'])}"
            return escape(text if wording.clear(row) else f"~ {text}")
    return wording.NOTHING


def _where_next(
    results: Sequence[Mapping[str, Any]], folder: Path, members: Sequence[several.Member]
) -> Iterator[tuple[str, str]]:
    here = _shown(folder)
    if (folder / "report.html").is_file():
        yield "report", f"{here}/report.html"
    trained = [stage for stage in ("grpo", "sft") if (folder / "checkpoints" / stage).is_dir()]
    if trained:
        yield "weights", f"{here}/checkpoints/{trained[0]}"
        config = RunFolder(folder).read_json("config.json")
        backbone = (config.get("backbone") or {}).get("name")
        chosen = f" backbone={backbone}" if backbone else ""
        kind = (config.get("weights") or {}).get("name", "published")
        chosen += f" weights={kind}" if kind != "published" else ""
        written = config.get("location_format", "words")
        chosen += f" location_format={written}" if written != "words" else ""
        init = setting("init", here)
        to_type = f"stage=evaluate {init}{chosen} data=photos data.root=<folder>"
        yield "next", f"python run.py {to_type}"
    elif len(members) > 1:
        runs = setting("runs", [member.folder for member in members])
        yield "next", f"python run.py stage=compare {runs}"
    elif results:
        yield "next", f"python run.py stage=report {setting('init', here)}"


def _shown(folder: Path) -> str:
    """The folder as one would type it from here."""
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
