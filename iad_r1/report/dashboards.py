"""Dashboards of W&B as code: what they show is data here, `save` hands it to W&B.

Names come from `store/metrics.py` and from the settings (components of the reward, shots), so a
dashboard cannot show a number that no run logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.store import metrics

TITLED = "iad_r1: "  # how the names of our dashboards begin


@dataclass(frozen=True)
class Panel:
    """One picture.

    lines: each of `shows` over the steps `over`. bars: the last value of each, a bar for each run.
    table: as it was logged last. parallel: settings (`config.<key>`) and last values, a line for
    each run. differences: the settings in which runs differ.
    """

    title: str
    kind: Literal["lines", "bars", "table", "parallel", "differences"]
    shows: tuple[str, ...] = ()
    over: str = ""


@dataclass(frozen=True)
class Dashboard:
    """Sections of panels. `slug` is its place in the project: saved again, it is replaced."""

    slug: str
    name: str
    sections: dict[str, tuple[Panel, ...]]

    def names(self) -> set[str]:
        """Every number, axis and table that it shows, as trackers call them."""
        panels = [panel for section in self.sections.values() for panel in section]
        shown = {name for panel in panels for name in (*panel.shows, panel.over)}
        return {name for name in shown if name and not name.startswith("config.")}


def dashboards(config: Config) -> list[Dashboard]:
    """Those of runs with such settings."""
    return [_training(), _rewards(config), _sweep(config), _evaluation(config)]


def _training() -> Dashboard:
    return Dashboard(
        "iadtraining",
        "training dynamics",
        {
            "SC-GRPO": (
                _steps("reward", "grpo", "reward"),
                _steps("completion length, tokens", "grpo", "length_mean", "length_max"),
                _steps("loss", "grpo", "loss"),
                _steps("KL to the reference, nats", "grpo", "kl"),
                _steps("entropy, nats", "grpo", "entropy"),
                _steps("gradient norm", "grpo", "grad_norm"),
                _steps("clipped tokens, share", "grpo", "clip_fraction_low", "clip_fraction_high"),
                _steps("answers, share", "grpo", "yes_rate", "gold_yes_rate", "invalid_rate"),
                _steps("set aside, share", "grpo", "degenerate_groups", "truncated"),
                _steps("sampler and trainer apart, nats", "grpo", "sampler_gap_mean"),
            ),
            "PA-SFT": (
                _steps("loss", "sft", "loss"),
                _steps("gradient norm", "sft", "grad_norm"),
                _steps("learning rate", "sft", "learning_rate"),
            ),
            "system": (
                _steps("seconds of a step", "grpo", "seconds_step", "seconds_sample",
                       "seconds_update", "seconds_reference", "seconds_score"),
                _steps("completion tokens per second", "grpo", "tokens_per_second"),
                _steps("memory, MiB", "grpo", "peak_memory_mib", "host_memory_mib"),
            ),
        },
    )  # fmt: skip


def _rewards(config: Config) -> Dashboard:
    parts = [f"reward_{name}" for name in config.rewards.components]
    return Dashboard(
        "iadrewards",
        "reward components",
        {
            "components": (
                _steps("components", "grpo", *parts),
                *(_steps(name, "grpo", f"{name}_normal", f"{name}_anomalous") for name in parts),
            ),
            "total": (
                _steps("good and defective pictures", "grpo", "reward_normal", "reward_anomalous"),
                _steps("standard deviation", "grpo", "reward_std"),
                _steps("advantages", "grpo", "advantage_min", "advantage_std", "advantage_max"),
            ),
            "completions": (
                Panel("completions", "table", (metrics.completions_key("grpo"),)),
            ),
        },
    )  # fmt: skip


def _sweep(config: Config) -> Dashboard:
    balanced = [
        metrics.eval_key(metrics.TESTED, shots, "balanced_accuracy")
        for shots in config.evaluate.shots
    ]
    located = [name.replace("balanced_accuracy", "location_accuracy") for name in balanced]
    reward = metrics.key("grpo", "reward")
    varied = ("config.rewards.name", "config.grid.name", "config.seed")
    return Dashboard(
        "iadsweep",
        "sweep comparison",
        {
            "results": (
                *(Panel(name, "bars", (name,)) for name in (*balanced, *located)),
                Panel("settings and results", "parallel", (*varied, reward, *balanced)),
            ),
            "curves": (
                _steps("reward", "grpo", "reward"),
                _steps("completion length, tokens", "grpo", "length_mean"),
            ),
            "settings": (Panel("settings that differ", "differences"),),
        },
    )


def _evaluation(config: Config) -> Dashboard:
    shown = ("balanced_accuracy", "location_accuracy", "type_accuracy", "well_formed", "miss_rate",
             "overkill_rate")  # fmt: skip
    panels = [
        Panel(
            f"{name.replace('_', ' ')}, {shots}-shot, %",
            "lines",
            (metrics.eval_key(metrics.TESTED, shots, name),),
            metrics.EVAL_STAGE,
        )
        for shots in config.evaluate.shots
        for name in shown
    ]
    return Dashboard(
        "iadevaluation",
        "evaluation",
        {
            "results": (Panel("results", "table", (metrics.RESULTS,)),),
            "over the stages of training": tuple(panels),
        },
    )


def _steps(title: str, stage: str, *names: str) -> Panel:
    shows = tuple(metrics.key(stage, name) for name in names)
    return Panel(title, "lines", shows, metrics.step_key(stage))


# --- W&B -----------------------------------------------------------------------------------------


def workspace(dashboard: Dashboard, entity: str, project: str) -> Any:
    """A dashboard as wandb-workspaces has it."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{TITLED}{dashboard.name}",
        sections=[
            ws.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
            for name, panels in dashboard.sections.items()
        ],
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    shows: list[Any] = list(panel.shows)
    if panel.kind == "lines":
        return wr.LinePlot(title=panel.title, x=panel.over, y=shows)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=shows)
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.shows[0])
    if panel.kind == "parallel":
        columns: list[Any] = [ParallelCoordinatesPlotColumn(_column(name)) for name in shows]
        return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns)
    return wr.RunComparer(diff_only="split")


def _column(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    kind, _, key = name.partition("config.")
    return wr.Config(key) if not kind else wr.SummaryMetric(name)


def save(found: Sequence[Dashboard], entity: str, project: str) -> list[str]:
    """Create the dashboards in a project, or replace those that were saved before; their addresses.

    ConfigError if W&B cannot be reached or refuses.
    """
    import wandb
    import wandb_workspaces.workspaces as ws

    saved = []
    for dashboard in found:
        made = workspace(dashboard, entity, project)
        try:
            there = _there(ws, f"https://wandb.ai/{entity}/{project}?nw={dashboard.slug}")
            if there is None:
                made._internal_name = f"nw-{dashboard.slug}-v"  # as the library says to do
            else:
                there.sections, there.name = made.sections, made.name
                made = there
            saved.append(made.save().url)
        except (wandb.Error, OSError, ValueError) as error:
            raise ConfigError(
                f"W&B did not take the dashboard {dashboard.name!r} of {entity}/{project}: "
                f"{' '.join(str(error).split())[:300]}. The project has to be there: a run with "
                "tracking=wandb makes it."
            ) from None
    return saved


def _there(ws: Any, url: str) -> Any | None:
    """What stands there; None if nothing does. ValueError if there is no project."""
    try:
        return ws.Workspace.from_url(url)
    except ValueError as error:
        if str(error).startswith("Workspace "):
            return None
        raise
