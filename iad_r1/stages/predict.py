"""`stage=predict`: a verdict on one's own photographs, by the weights of a run or of a hub id.

    python run.py stage=predict init=<run or hub id> images=<folder> references=<good pictures>
    python run.py stage=predict method=patchcore images=<folder> references=<good pictures>

Prompt, grid, vocabulary and limits of pictures are those of that run. The exit code is 3 if some
picture could not be read or got no valid answer; with `fail_on_defect=true`, 1 if any is defective.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import nearest, prompts, stages
from iad_r1.data.arrivals import listed, references
from iad_r1.errors import ConfigError, DataError
from iad_r1.loops.operating_point import described, threshold
from iad_r1.settings.config import Config
from iad_r1.settings.predict import JudgingSettings, PredictSettings
from iad_r1.settings.rollout import AnyVllmRollout
from iad_r1.stages import pipeline, row
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import Start, start_of

Settings = PredictSettings
INHERITED = (
    "backbone", "weights", "grid", "location_format", "rewards", "evaluate", "engine.precision",
)  # fmt: skip


class Stage(stages.Stage):
    """Judges pictures of which nothing is known."""

    saves = False
    paths = ("stage.images", "stage.references", "stage.validation")
    shortcuts = ("images", "references", "threshold", "miss_rate", "validation", "watch",
                 "fail_on_defect")  # fmt: skip
    inherits = INHERITED
    imports = ("iad_r1.loops.predict",)

    def problems(self, config: Config) -> Iterator[str]:
        stage = _settings(config)
        yield from judging_problems(config)
        if stage.watch and not isinstance(stage.images, str):
            yield f"watch=true watches one folder, and images={stage.images}. Give one folder."
        if stage.watch and stage.fail_on_defect:
            yield (
                "watch=true with fail_on_defect=true: a watch ends with Ctrl-C, and so with exit "
                "code 130. Leave one of them out."
            )

    def check_inputs(self, config: Config) -> None:
        stage, start = _settings(config), begin(config)
        if stage.images is None:
            raise ConfigError("stage=predict needs pictures: images=<file, folder or glob>.")
        if config.method.name == "patchcore" and stage.references is None:
            raise ConfigError(
                "stage=predict method=patchcore needs good pictures of the same product to compare "
                f"with, {nearest.LEAST} or more: references=<file, folder or glob>."
            )
        if not stage.watch:
            listed(stage.images)
        elif not Path(str(stage.images)).is_dir():
            raise DataError(f"watch=true: {stage.images} is no folder.")
        check_judging(config, start)
        if config.method.name == "patchcore":
            _check_apart(stage)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        images = _settings(config).images or []
        written = outputs.resolve()
        for text in [images] if isinstance(images, str) else images:
            if Path(text).resolve() in (written, *written.parents):
                raise ConfigError(
                    f"images={text} holds {outputs}, where marked copies of the pictures are kept: "
                    "they would be judged in turn. Start in another folder."
                )
        return find_weights(config, begin(config))

    def announce(self, config: Config, output: str) -> Iterator[str]:
        stage, shots = _settings(config), len(references(config))
        patches = config.method.name == "patchcore"
        if patches:
            yield "verdicts of nearest good patches"
        else:
            yield f"verdicts of {config.backbone.name}, prompt {config.evaluate.prompt}"
            yield row("weights", f"{config.init}")
        if stage.watch:
            yield row("images", f"what lands in {stage.images}, looked at every {stage.poll:g} s")
        else:
            yield row("images", f"{len(listed(stage.images or [])):,} pictures")
        if stage.references is not None:
            there = len(listed(stage.references))
            done = "remembered" if patches else "shown with each"
            yield row("reference", f"{shots} of {there:,} good pictures {done}")
        yield from threshold_rows(config, shots)
        yield row("output", output)

    def run(self, config: Config, folder: RunFolder) -> int:
        from iad_r1.loops import predict

        return predict.run(config, folder)


def _settings(config: Config) -> PredictSettings:
    assert isinstance(config.stage, PredictSettings)
    return config.stage


def begin(config: Config) -> Start | None:
    """The run that judges; None: a model that is none of ours, or nearest good patches."""
    return pipeline.begin(config) if start_of(str(config.init)) is not None else None


def judging_problems(config: Config) -> Iterator[str]:
    """A sentence for each setting with which no picture can be judged."""
    stage = config.stage
    assert isinstance(stage, JudgingSettings)
    patches = config.method.name == "patchcore"
    if config.init is None and not patches:
        yield (
            f"stage={stage.name} needs weights to judge with: those of a run, "
            "init=outputs/<name>/<timestamp>, or of a hub id, init=Qwen/Qwen2.5-VL-3B-Instruct. "
            "Nearest good patches need none: method=patchcore."
        )
    if stage.threshold is not None and stage.threshold > 1 and not patches:
        yield f"threshold={stage.threshold:g}: P(yes) of a model is 1 at most."
    if stage.threshold is not None and stage.miss_rate is not None:
        yield (
            f"threshold={stage.threshold:g} and miss_rate={stage.miss_rate:g}: both say from "
            "which P(yes) on a picture is defective. Give one of them."
        )
    if stage.validation is not None and stage.miss_rate is None:
        yield (
            f"validation={stage.validation} says which threshold keeps a miss rate, and there is "
            "none. Add miss_rate=5, or leave validation out."
        )
    rollout, shots = config.rollout, max(config.evaluate.shots)
    if stage.references is not None and not patches and shots == 0:
        yield (
            "references with evaluate.shots=[0]: none of them would be shown. Use "
            "evaluate.shots=[1], or leave references out."
        )
    shown = shots if stage.references is not None else 0
    if not patches and isinstance(rollout, AnyVllmRollout) and shown >= rollout.max_images:
        yield (
            f"{shown} references and a picture are more than rollout.max_images="
            f"{rollout.max_images}. Use rollout.max_images={shown + 1}."
        )


def check_judging(config: Config, start: Start | None) -> None:
    """Make sure that pictures can be judged with what the settings name. Raises ConfigError,
    DataError or WeightsError."""
    shots = len(references(config))
    if config.method.name == "patchcore":
        if 0 < shots < nearest.LEAST:
            raise DataError(
                f"references names {shots} good picture, and nearest good patches need "
                f"{nearest.LEAST} or more: a single one does not say how much good ones differ. "
                "Some dozens are better. Give a folder or a glob: references=<folder>."
            )
    else:
        prompts.conversation(config.evaluate.prompt, shots=shots)
    threshold(config, shots)
    find_weights(config, start)


def find_weights(config: Config, start: Start | None) -> bool:
    """Whether the weights that judge are on this machine. WeightsError if nobody has them."""
    if config.method.name == "patchcore":
        nearest.weights_file()
        return True
    return pipeline.find_weights(config, start)


def _check_apart(stage: PredictSettings) -> None:
    """DataError if a picture would be compared with itself."""
    if stage.watch:
        folder = Path(str(stage.images)).resolve()
        both = [one for one in listed(stage.references or []) if folder in one.resolve().parents]
    else:
        judged = {path.resolve() for path in listed(stage.images or [])}
        both = [one for one in listed(stage.references or []) if one.resolve() in judged]
    if both:
        raise DataError(
            f"{len(both)} pictures are named by images and by references, such as {both[0]}: "
            "compared with itself, a picture is always good. Name them once."
        )


def threshold_rows(config: Config, shots: int) -> Iterator[str]:
    """What is announced of the threshold."""
    value, said = described(config, shots)
    first, *more = said.split("\n")
    name = "score" if config.method.name == "patchcore" else "P(yes)"
    yield row("threshold", first if value is None else f"{name} {value:.3g}, {first}")
    yield from (row("", line) for line in more)
