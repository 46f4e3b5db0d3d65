"""What a run is about to do, in a few lines, and whether what it needs is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from iad_r1.backbones import hub
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings.config import Config, HubBackbone, Length
from iad_r1.store.run_folder import RunFolder, Start, find_start, recent_runs


def lines(config: Config, output: str) -> Iterator[str]:
    """The plan of a run, one line each. Reads no data and no weights.

    `output` is where the run will write.
    """
    steps = config.steps()
    if config.stage.name == "audit":
        yield f"audit of {config.stage.completions or config.init}"
        yield _row("rewards", f"{config.rewards.name} against {config.stage.loose}")
        yield _row("output", output)
        return
    if config.stage.name == "report":
        yield f"report on {config.init}"
        return
    if config.stage.name == "plan":
        yield f"memory of {config.backbone.name}, {config.stage.gpus} GPUs"
        yield _row("output", output)
        return
    if config.rollout.name == "vllm_server" and config.stage.name == "serve":
        yield f"a vLLM server for {config.backbone.name}, without weights: a run sends them"
        yield _row("address", f"http://{config.rollout.host}:{config.rollout.port}")
        return
    yield f"{config.stage.name} on {config.backbone.name}, data {config.data.name}"
    yield _row("steps", " -> ".join(steps))
    yield _row("weights", _weights(config))
    yield _row("data", _data(config))
    if "sft" in steps:
        yield _row("PA-SFT", _sft(config))
    if "grpo" in steps:
        yield _row("SC-GRPO", _grpo(config))
        yield _row("rewards", f"{config.rewards.name}, grid {config.grid.rows}x{config.grid.cols}")
    if "evaluate" in steps:
        yield _row("evaluate", _evaluate(config))
    yield _row("output", output)


def _row(name: str, text: str) -> str:
    return f"  {name:<9} {text}"


def _weights(config: Config) -> str:
    backbone = config.backbone
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


def _data(config: Config) -> str:
    data = config.data
    if data.name == "photos":
        return f"photographs in {data.root}"
    sizes = data.sizes
    return (
        f"drawn, {data.image_size} px: {sizes.sft:,} for PA-SFT, {sizes.rl:,} for SC-GRPO, "
        f"2 x {sizes.validation:,} validation, 2 x {sizes.test:,} test"
    )


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


def _evaluate(config: Config) -> str:
    evaluate = config.evaluate
    shots = ", ".join(f"{count}-shot" for count in evaluate.shots)
    limit = f", first {evaluate.limit:,} images" if evaluate.limit else ""
    return f"{', '.join(evaluate.splits)}, {shots}, graded by {evaluate.evaluator}{limit}"


# --- whether what it needs is there --------------------------------------------------------------


def check_inputs(config: Config) -> Start | None:
    """Make sure that the folders which the settings name are there and fit; the checkpoint that
    `init` stands for. Raises ConfigError, DataError or WeightsError."""
    if config.stage.name == "plan":  # by arithmetic
        return None
    if config.stage.name in ("report", "audit"):  # these read an earlier run, not its weights
        if config.init is not None:
            RunFolder.open(config.init)
        return None
    if config.stage.name != "serve" or config.backbone.source == "built":
        _check_data(config)
    if config.init is None:
        return None
    start = find_start(config.init)
    _check_same_backbone(config, start)
    return start


def check_weights(config: Config, start: Start | None, outputs: Path) -> bool:
    """Make sure that the run has weights to start from; whether all of them are on this machine.

    Raises WeightsError if they are missing, ConfigError if they are not trained far enough.
    """
    if config.stage.name in ("report", "audit", "plan"):
        return True
    here = _find_weights(config, start, outputs)
    _check_fine_tuned(config, start, outputs)
    return here


def _check_data(config: Config) -> None:
    root = getattr(config.data, "root", None)
    if root is not None and not Path(root).is_dir():
        raise DataError(f"data.root={root}: there is no such folder.")


def _find_weights(config: Config, start: Start | None, outputs: Path) -> bool:
    backbone = config.backbone
    if config.weights.name != "published":
        return True
    if isinstance(backbone, HubBackbone):
        whole = start is not None and (start.path / "config.json").is_file()
        return whole or hub.require(backbone) is not None
    if start is None and config.stage.name == "evaluate":
        raise ConfigError(
            f"stage=evaluate needs trained weights, and backbone={backbone.name} has none of its "
            f"own. {_type_init(outputs, 'evaluate')}"
        )
    return True


def _check_same_backbone(config: Config, start: Start) -> None:
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


def _check_fine_tuned(config: Config, start: Start | None, outputs: Path) -> None:
    """SC-GRPO starts from PA-SFT weights, unless the user says that it should not."""
    steps = config.steps()
    if "grpo" not in steps or "sft" in steps or config.grpo.from_base:
        return
    if start is None or start.stage == "pretrain":
        found = "no init was given" if start is None else f"{start.path} was only pre-trained"
        raise ConfigError(
            f"stage=grpo would start from weights without PA-SFT: {found}. "
            f"{_type_init(outputs, 'grpo')} Or say that you mean it: grpo.from_base=true."
        )


def _type_init(outputs: Path, stage: str) -> str:
    runs = recent_runs(outputs, ("sft", "grpo"))
    if runs:
        return f"Start from your latest run: python run.py stage={stage} init={_short(runs[0])}."
    return (
        "First run `python run.py stage=sft` with the same backbone and data, then add "
        "init=outputs/<name>/<timestamp>."
    )


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
