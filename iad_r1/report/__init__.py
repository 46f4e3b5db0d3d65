"""What a run did, for people: the terminal, figures and `report.html`."""

from __future__ import annotations

from pathlib import Path


def build(run_folder: Path) -> Path:
    """Write `report.html` and `figures/*.svg` of a run folder; returns the report's path.

    Raises DataError when the folder is not a run folder or holds an unreadable file.
    """
    from iad_r1.report.page import build as build_page  # imports matplotlib only when asked

    return build_page(Path(run_folder))
