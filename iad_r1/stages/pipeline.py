"""`stage=pipeline`: PA-SFT, SC-GRPO, and an evaluation before and after each.

`stage=pretrain`, `sft`, `grpo` and `evaluate` are parts of it: they differ in their `tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1 import data, nearest, stages
from iad_r1.backbones import families, hub
from iad_r1.backbones.shapes import architecture
from iad_r1.errors import ConfigError, DataError, setting
from iad_r1.settings.backbone import HubBackbone
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.settings.training import Length
from iad_r1.stages import row
from iad_r1.store import tracking
from iad_r1.store.run_folder import RunFolder, recent_runs
from iad_r1.store.starts import Start, find_start

Settings = StageSettings


class Stage(stages.Stage):
    """The tasks of a run one after the other, on weights that it opens."""

    ranked = True
    imports = ("iad_r1.loops.pipeline",)

    def problems(self, config: Config) -> Iterator[str]:
        if not config.tasks():
            yield (
                f"stage={config.stage.name} has nothing to do: only backbone=tiny is pre-trained, "
                "and only without init. Choose another stage, e.g. stage=sft."
            )

    def check_inputs(self, config: Config) -> None:
        tracking.check(config.tracking)
        check_data(config)
        check_frame(config)
        begin(config)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        start = begin(config)
        here = find_weights(config, start)
        tasks = config.tasks()
        beside = "evaluate" in tasks and config.patchcore.beside == "always"
        if beside or config.reference_choice == "nearest":
            nearest.weights_file()
        fine_tunes = "grpo" in tasks and "sft" not in tasks and not config.grpo.from_base
        if fine_tunes and (start is None or start.stage == "pretrain"):
            found = "no init was given" if start is None else f"{start.path} was only pre-trained"
            raise ConfigError(
                f"stage={config.stage.name} would start from weights without PA-SFT: {found}. "
                f"{type_init(outputs, 'grpo')} Or say that you mean it: "
                "grpo.from_base=true."
            )
        return here

    def announce(self, config: Config, output: str) -> Iterator[str]:
        tasks = config.tasks()
        sources, tested = data.sources(config), data.benchmarks(config)
        about = [f"benchmark {name}" for name in tested]
        if len(sources) > len(tested):
            about.insert(0, f"data {config.data.name}")
        patches = config.method.name == "patchcore"
        judge = "nearest good patches" if patches else config.backbone.name
        yield f"{config.stage.name} on {judge}, {', '.join(about)}"
        if tasks:
            yield row("tasks", " -> ".join(tasks))
        if not patches:
            yield row("weights", weights(config))
        if len(sources) > len(tested):
            yield row("data", config.data.announce())
        for found in tested.values():
            yield row("benchmark", found.announce())
        if "sft" in tasks:
            yield row("PA-SFT", _sft(config))
        if "grpo" in tasks:
            yield row("SC-GRPO", _grpo(config))
            yield row(
                "rewards", f"{config.rewards.name}, grid {config.grid.rows}x{config.grid.cols}"
            )
        if patches:
            yield row("evaluate", _patches(config))
        elif "evaluate" in tasks:
            yield row("evaluate", evaluation(config))
        yield row("output", output)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import pipeline

        pipeline.run(config, folder)


# --- whether what it needs is there --------------------------------------------------------------


def check_data(config: Config) -> None:
    """DataError if a folder of the data is not there."""
    for key, found in data.sources(config).items():
        root = getattr(found, "root", None)
        if root is not None and not Path(root).is_dir():
            raise DataError(f"{key}.root={root}: there is no such folder.")


def begin(config: Config) -> Start | None:
    """The checkpoint that `init` stands for. ConfigError if it is of another backbone."""
    if config.init is None:
        return None
    start = find_start(config.init)
    before = start.run.read_json("config.json")
    earlier = before.get("backbone", {}).get("name")
    if earlier and earlier != config.backbone.name:
        raise ConfigError(
            f"backbone={config.backbone.name}, but {start.run.path} trained {earlier}. "
            f"Add backbone={earlier}."
        )
    kind = before.get("weights", {}).get("name", config.weights.name)
    if kind != config.weights.name:
        raise ConfigError(
            f"weights={config.weights.name}, but {start.run.path} began with weights={kind}. "
            f"Add weights={kind}."
        )
    written = before.get("location_format", "words")
    if written != config.location_format and start.stage != "pretrain" and _keeps(config):
        raise ConfigError(
            f"location_format={config.location_format}, but {start.run.path} trained its answers "
            f"with location_format={written}. Add location_format={written}, or run PA-SFT anew."
        )
    return start


def _keeps(config: Config) -> bool:
    """Whether places stay as earlier weights write them: PA-SFT can teach another form."""
    return "sft" not in config.tasks()


def check_frame(config: Config) -> None:
    """ConfigError if it is not known in which coordinates the backbone writes places that are no
    words. Of a model whose architecture only its weights tell, it is found out when they load."""
    if config.location_format == "words" or not isinstance(config.backbone, HubBackbone):
        return
    try:
        model_type = architecture(config).model_type
    except ConfigError:
        return
    families.check_frame(model_type)


def find_weights(config: Config, start: Start | None) -> bool:
    """Whether the weights to begin with are on this machine. WeightsError if nobody has them."""
    backbone = config.backbone
    if not isinstance(backbone, HubBackbone) or config.weights.name != "published":
        return True
    whole = start is not None and (start.path / "config.json").is_file()
    return whole or hub.require(backbone) is not None


def type_init(outputs: Path, stage: str) -> str:
    """What to type so that a stage has weights that were fine-tuned."""
    runs = recent_runs(outputs, ("sft", "grpo"))
    if not runs:
        return (
            "First run `python run.py stage=sft` with the same backbone and data, then add "
            "init=outputs/<name>/<timestamp>."
        )
    here = Path.cwd()
    latest = runs[0].relative_to(here) if runs[0].is_relative_to(here) else runs[0]
    return f"Start from your latest run: python run.py stage={stage} {setting('init', latest)}."


# --- what it says --------------------------------------------------------------------------------


def weights(config: Config) -> str:
    backbone = config.backbone
    if backbone.source == "api":
        return f"those of {backbone.model} at {backbone.base_url}, asked over the network"
    if config.init is not None:
        rehearsal = ": a rehearsal, whose numbers mean nothing"
        return f"from {config.init}{rehearsal if config.weights.name == 'tiny' else ''}"
    if config.weights.name == "tiny":
        return f"a tiny random twin of {backbone.name}: a rehearsal, whose numbers mean nothing"
    if config.weights.name == "random":
        return f"random, at the true size of {backbone.name}: for measuring, not for results"
    if isinstance(backbone, HubBackbone):
        return f"{backbone.path}, not fine-tuned"
    return f"built here, seed {config.seed}"


def _length(length: Length) -> str:
    parts = [f"{length.steps:,} steps"] if length.steps is not None else []
    if length.epochs is not None:
        parts.append(f"{length.epochs:g} epoch{'' if length.epochs == 1 else 's'}")
    return " or ".join(parts)


def _sft(config: Config) -> str:
    phases = [
        f"{_length(phase)} of {phase.batch_size} at {config.sft.learning_rate * phase.lr_scale:.3g}"
        for phase in config.sft.phases
    ]
    return ", then ".join(phases) + f" ({config.tuning.name})"


def _grpo(config: Config) -> str:
    grpo = config.grpo
    return (
        f"{_length(grpo)} of {grpo.prompts_per_step} prompts x {grpo.group_size} completions "
        f"at {grpo.learning_rate:.3g} ({config.tuning.name}, rollouts: {config.rollout.name})"
    )


def evaluation(config: Config) -> str:
    evaluate = config.evaluate
    shots = ", ".join(f"{count}-shot" for count in evaluate.shots)
    limit = f", first {evaluate.limit:,} images" if evaluate.limit else ""
    letters = ", letters by log-prob" if evaluate.choices == "logprob" else ""
    return f"{', '.join(evaluate.splits)}, {shots}, graded by {evaluate.evaluator}{letters}{limit}"


def _patches(config: Config) -> str:
    evaluate, asked = config.evaluate, config.patchcore
    limit = f", first {evaluate.limit:,} images" if evaluate.limit else ""
    return (
        f"{', '.join(evaluate.splits)}, against at most {asked.pictures:,} good pictures of each "
        f"product{limit}"
    )
