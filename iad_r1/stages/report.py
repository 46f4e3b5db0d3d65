"""`stage=report`: write the report of a run again, from what its folder holds."""

from __future__ import annotations

from pathlib import Path

from iad_r1 import report
from iad_r1.report.terminal import print_summary
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder


def run(config: Config, folder: RunFolder) -> Path:
    """Report on `folder`, or on the earlier run that `stage=report init=...` names.

    Returns the path of `report.html`.
    """
    asked = config.stage.name == "report" and config.init is not None
    reported = RunFolder.open(config.init) if asked and config.init else folder
    path = report.build(reported.path)
    print_summary(reported.summary(), reported.path)
    return path
