"""TensorBoard: event files in the run folder, one series of them per stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iad_r1.settings.tracking import TensorboardTracking
from iad_r1.store import metrics
from iad_r1.store.products import Product
from iad_r1.store.trackers import (
    THUMBNAIL,
    Row,
    evaluated,
    result_columns,
    side_by_side,
    trained,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

OF_RUN, EVALUATION = "run", "eval"  # series beside those of the stages


def open_backend(
    settings: TensorboardTracking, folder: Path, config: Mapping[str, Any]
) -> TensorboardBackend:
    """Event files below `<run folder>/tensorboard`."""
    return TensorboardBackend(settings, folder / "tensorboard", config)


class TensorboardBackend:
    """Writes event files. Each stage counts its steps from zero, so each has a folder of its own,
    which TensorBoard shows as a run."""

    def __init__(
        self, settings: TensorboardTracking, folder: Path, config: Mapping[str, Any]
    ) -> None:
        self._settings, self._folder = settings, folder
        self._writers: dict[str, SummaryWriter] = {}
        text = json.dumps(config, indent=2, default=str)
        self._of(OF_RUN).add_text("config", f"```json\n{text}\n```")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._of(stage).add_scalar(metrics.key(stage, name), value, step)

    def rollouts(self, stage: str, step: int, rows: Sequence[Row]) -> None:
        rows, key = rows[: self._settings.rollout_rows], metrics.completions_key(stage)
        plain = [{name: row[name] for name in row if name != THUMBNAIL} for row in rows]
        self._of(stage).add_text(key, markdown(plain), step)
        pictures = list(dict.fromkeys(row[THUMBNAIL] for row in rows if row.get(THUMBNAIL)))
        if pictures:
            shown = side_by_side(pictures)
            self._of(stage).add_image(f"{key}/pictures", shown, step, dataformats="HWC")

    def evaluation(self, rows: Sequence[Row]) -> None:
        writer, step = self._of(EVALUATION), trained(rows[-1]["stage"])
        for key, value in evaluated(rows):
            writer.add_scalar(key, value, step)
        writer.add_text(metrics.RESULTS, markdown([result_columns(row) for row in rows]), step)

    def made(self, product: Product) -> None:
        files = [{"file": name, "path": str(path)} for name, path in product.files.items()]
        of = f"\n\nmade from {', '.join(product.of)}" * bool(product.of)
        self._of(OF_RUN).add_text(f"made/{product.name}", f"{markdown(files)}{of}")

    def rewind(self, stage: str, step: int) -> None:
        if stage in self._writers:
            self._writers.pop(stage).close()
        self._writers[stage] = self._open(stage, purge_step=step)

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        for phase, seconds in (summary.get("seconds") or {}).items():
            self._of(OF_RUN).add_scalar(f"system/total/{phase}", seconds)
        for writer in self._writers.values():
            writer.close()

    def _of(self, series: str) -> SummaryWriter:
        if series not in self._writers:
            self._writers[series] = self._open(series)
        return self._writers[series]

    def _open(self, series: str, purge_step: int | None = None) -> SummaryWriter:
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(self._folder / series, purge_step=purge_step)


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table of Markdown: the union of their columns; what would end a cell is escaped."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        names,
        ["---"] * len(names),
        *([_cell(row.get(name)) for name in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("\n", "<br>")):
        text = text.replace(sign, escaped)
    return text
