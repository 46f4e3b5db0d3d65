"""`stage=dashboard`: dashboards in Weights & Biases, created or brought up to date.

    python run.py stage=dashboard tracking.project=iad_r1
    python run.py stage=dashboard tracking.entity=<team> rewards=answer_only

They show what runs with these settings log: the components of `rewards`, the shots of `evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec

from iad_r1 import stages
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.settings.tracking import WandbTracking
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.trackers.wandb import resolve_mode

Settings = StageSettings


class Stage(stages.Stage):
    """Speaks to W&B alone."""

    def problems(self, config: Config) -> Iterator[str]:
        if not isinstance(config.tracking, WandbTracking):
            yield (
                f"stage=dashboard with tracking={config.tracking.name}: dashboards are those of "
                "Weights & Biases. Use tracking=wandb."
            )

    def check_inputs(self, config: Config) -> None:
        if find_spec("wandb_workspaces") is None:
            raise ConfigError(
                "stage=dashboard needs the package wandb-workspaces, which is not installed. "
                'Type: pip install "iad_r1[dashboards]".'
            )
        import wandb

        mode = resolve_mode(_tracking(config).mode, os.environ, wandb.Settings().base_url)
        if mode != "online":
            raise ConfigError(
                f"stage=dashboard has to reach W&B, and tracking.mode={_tracking(config).mode} is "
                f"{mode} here. Type `wandb login` (or set WANDB_API_KEY), leave WANDB_MODE unset, "
                "and use tracking.mode=online."
            )

    def announce(self, config: Config, output: str) -> Iterator[str]:
        tracking = _tracking(config)
        yield "dashboards in Weights & Biases"
        yield stages.row("project", f"{tracking.entity or 'your default'}/{tracking.project}")
        yield stages.row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        import wandb

        from iad_r1.report.dashboards import dashboards, save

        tracking, found = _tracking(config), dashboards(config)
        folder.write_json("dashboards.json", {one.slug: asdict(one) for one in found})
        try:
            entity = tracking.entity or wandb.Api().default_entity
        except (wandb.Error, OSError, ValueError) as error:
            raise ConfigError(f"W&B could not be reached: {error}") from None
        for dashboard, url in zip(found, save(found, str(entity), tracking.project), strict=True):
            print(f"{dashboard.name:<20} {url}", flush=True)


def _tracking(config: Config) -> WandbTracking:
    assert isinstance(config.tracking, WandbTracking)
    return config.tracking
