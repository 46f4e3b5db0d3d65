"""`stage=review`: people read what `stage=expert_ad` has built, on a page, until Ctrl-C.

    python run.py stage=review init=<run of stage=expert_ad>
    python run.py stage=review init=<run of stage=expert_ad> write=true

Decisions are kept with the build, in `review/`. With `write=true` there is no page: the lists of
the build are written again, as reviewers left them (`docs/expert_ad.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import stages
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.settings.expert import ReviewSettings
from iad_r1.stages import app
from iad_r1.store.run_folder import RunFolder

Settings = ReviewSettings


class Stage(stages.Stage):
    """Needs a build that has ended, and the pictures that it is about."""

    saves = False
    shortcuts = ("write",)
    imports = ("iad_r1.loops.review",)

    def problems(self, config: Config) -> Iterator[str]:
        if config.init is None:
            yield "stage=review needs what is reviewed: init=<run folder of stage=expert_ad>."

    def check_inputs(self, config: Config) -> None:
        stage, build = _settings(config), RunFolder.open(str(config.init))
        kind = build.read_json("config.json").get("stage", {}).get("name")
        if kind != "expert_ad":
            raise ConfigError(
                f"init={config.init} is a run of stage={kind}, and stage=review shows what "
                "stage=expert_ad has built. Name the folder of such a run."
            )
        if "expert_ad" not in build.summary():
            raise ConfigError(
                f"init={config.init}: this build has not ended, and has no lists yet. Go on with "
                "it: the command that began it, and resume=auto."
            )
        if stage.write:
            if not any((build.path / "review").glob("*.jsonl")):
                raise ConfigError(
                    f"write=true: nobody has reviewed {build.path}. Leave write out to review it."
                )
            return
        app.check_gradio(stage)
        app.token(stage)
        app.check_free(stage)

    def announce(self, config: Config, output: str) -> Iterator[str]:
        stage = _settings(config)
        if stage.write:
            yield f"writing the lists of {config.init} as reviewers left them"
        else:
            yield f"a page to review {config.init}"
            yield stages.row("served to", f"{app.whom(stage)}, at {stage.host}:{stage.port}")
        yield stages.row("decisions", f"{Path(str(config.init)) / 'review'}")

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import review

        stage, build = _settings(config), RunFolder.open(str(config.init))
        if stage.write:
            review.write(build)
        else:
            review.run(stage, build, app.token(stage))


def _settings(config: Config) -> ReviewSettings:
    assert isinstance(config.stage, ReviewSettings)
    return config.stage
