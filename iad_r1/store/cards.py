"""What goes with weights that leave a run: a model card that says what they are.

The weights themselves are written by `Backbone.write` in the hub's layout: tensor names as the hub
spells them, generation config, processor and chat template, so that `AutoModelForImageTextToText`
and `vllm serve` read the folder as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder, write_text

AFTER = {"pretrain": "pre-trained", "sft": "after PA-SFT", "grpo": "after SC-GRPO"}
STEPS = {
    "pretrain": "pre-training of the vision tower",
    "sft": "PA-SFT",
    "grpo": "SC-GRPO",
}
HUB_LICENCES = ("apache-2.0", "mit", "llama2")  # others are `other` with a name, says the hub
METRICS = ("balanced_accuracy", "location_accuracy", "type_accuracy", "well_formed")
PACKAGES = ("torch", "transformers", "peft")


def write_cards(folder: RunFolder, config: Config, stage: str) -> None:
    """Write README.md beside the weights after `stage`, and beside its adapter if there is one.

    Called again after an evaluation, it adds what was measured. Weights that this run did not
    train are left as they are.
    """
    if stage not in AFTER:
        return
    for name, adapter in ((stage, False), (f"{stage}-adapter", True)):
        if folder.checkpoint(name).is_dir():
            text = card(folder, config, stage, adapter=adapter)
            write_text(folder.checkpoint(name) / "README.md", text)


def card(folder: RunFolder, config: Config, stage: str, *, adapter: bool) -> str:
    """The model card of the weights after `stage`, in Markdown with the hub's front matter."""
    manifest = folder.read_json("manifest.json")
    backbone = config.backbone
    return _template().render(
        name=backbone.name,
        backbone=backbone.name,
        stage=stage,
        after=AFTER[stage],
        adapter=adapter,
        weights=config.weights.name,
        base=_base(config),
        began=_began(config),
        steps=_steps(config, stage),
        licence=_licence(backbone.license if backbone.source == "hub" else None),
        pixels=f"{backbone.max_pixels:,} pixels" if backbone.max_pixels else "the base's own limit",
        prompt=config.grpo.prompt if stage == "grpo" else config.sft.prompt,
        data=manifest.get("data") or {"name": config.data.name, "fingerprint": "-", "counts": {}},
        recipe=_recipe(config, stage),
        results=_results(folder, stage),
        evaluate=config.evaluate,
        code=manifest.get("code") or {"commit": None, "dirty": None},
        packages=", ".join(
            f"{name} {version}"
            for name, version in manifest.get("packages", {}).items()
            if name in PACKAGES
        ),
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("iad_r1", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown of our own values, not HTML
    )
    return environment.get_template("model_card.md.j2")


def _base(config: Config) -> str | None:
    """The hub's id of the weights the run began with, if they have one."""
    backbone = config.backbone
    if backbone.source == "built" or config.weights.name != "published" or config.init is not None:
        return None
    return None if Path(backbone.path).is_absolute() else backbone.path


def _began(config: Config) -> str:
    backbone = config.backbone
    if config.init is not None:
        return f"the weights of an earlier run of {backbone.name}"
    if backbone.source == "built" or config.weights.name != "published":
        return f"random weights (seed {config.seed})"
    where = Path(backbone.path)
    named = f"the checkpoint `{where.name}`" if where.is_absolute() else f"`{backbone.path}`"
    revision = "" if backbone.revision == "main" else f" at revision `{backbone.revision}`"
    return f"{named}{revision}"


def _steps(config: Config, stage: str) -> list[str]:
    """The training steps of this run up to `stage`."""
    taken = [step for step in dict.fromkeys(config.tasks()) if step in STEPS]
    return [STEPS[step] for step in taken[: taken.index(stage) + 1]]


def _licence(text: str | None) -> dict[str, str | None]:
    if text is None:
        return {"id": "other", "name": "none", "text": "built from random weights, nobody's"}
    if text in HUB_LICENCES:
        return {"id": text, "name": None, "text": text}
    return {"id": "other", "name": text.lower().replace(" ", "-"), "text": text}


def _recipe(config: Config, stage: str) -> dict[str, str]:
    """The settings a reader asks for first; the others are in `config.json`."""
    settings = {
        "seed": config.seed,
        "tuning": _tuning(config),
        "precision": config.engine.precision,
    }
    section = getattr(config, stage)
    settings |= {
        "learning rate": f"{section.learning_rate:g}, {section.schedule}",
        "warm-up steps": section.warmup_steps,
        "AdamW betas": ", ".join(f"{beta:g}" for beta in section.adam_betas),
        "weight decay": f"{section.weight_decay:g}",
        "gradient clipped at": f"{section.max_grad_norm:g}",
    }
    if stage == "sft":
        for index, phase in enumerate(config.sft.phases):
            settings[f"phase {index + 1}"] = f"{_length(phase)} of {phase.batch_size} samples"
    if stage == "grpo":
        settings["length"] = f"{_length(config.grpo)} of {config.grpo.prompts_per_step} prompts"
        settings["completions per prompt"] = config.grpo.group_size
        settings["rewards"] = config.rewards.name
        settings["KL coefficient"] = f"{config.grpo.kl_coef:g} ({config.grpo.kl_kind})"
    return {name: str(value) for name, value in settings.items()}


def _tuning(config: Config) -> str:
    tuning = config.tuning
    parts = ", ".join(tuning.train)
    if tuning.name == "lora":
        return f"LoRA of rank {tuning.rank}, alpha {tuning.alpha}, on {parts}"
    return f"full, of {parts}"


def _length(length: Any) -> str:
    limits = [f"{length.steps:,} steps"] if length.steps is not None else []
    limits += [f"{length.epochs:g} epochs"] if length.epochs is not None else []
    return " or ".join(limits)


def _results(folder: RunFolder, stage: str) -> list[dict[str, Any]]:
    rows = [row for row in folder.summary().get("results", []) if row["stage"] == stage]
    return [{**row, **{metric: _with_interval(row, metric) for metric in METRICS}} for row in rows]


def _with_interval(row: Mapping[str, Any], metric: str) -> str:
    value, interval = row[metric], (row.get("ci95") or {}).get(metric)
    if value is None:
        return "-"
    if not interval or None in interval:
        return f"{value:.1f}"
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
