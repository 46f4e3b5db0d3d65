"""What goes with weights that leave a run: a model card that says what they are.

The weights themselves are written by `Backbone.write` in the hub's layout: tensor names as the hub
spells them, generation config, processor and chat template, so that `AutoModelForImageTextToText`
and `vllm serve` read the folder as it is.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from iad_r1.settings.config import Config
from iad_r1.store.manifest import STEPS, chosen_weights, taken
from iad_r1.store.run_folder import RunFolder, write_text

AFTER = {"pretrain": "pre-trained", "sft": "after PA-SFT", "grpo": "after SC-GRPO"}
HUB_LICENCES = ("apache-2.0", "mit", "llama2")  # others are `other` with a name, says the hub
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
    environment = Environment(
        loader=PackageLoader("iad_r1", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown of our own values, not HTML
    )
    manifest, backbone = folder.read_json("manifest.json"), config.backbone
    versions = manifest.get("packages", {})
    trained = [step for step in dict.fromkeys(config.tasks()) if step in STEPS]
    return environment.get_template("model_card.md.j2").render(
        config=config,
        stage=stage,
        after=AFTER[stage],
        adapter=adapter,
        base=_base(config),
        began=_began(config),
        steps=[STEPS[step] for step in trained[: trained.index(stage) + 1]],
        taken=list(taken(manifest)),
        licence=backbone.license if backbone.source == "hub" else None,
        hub_licences=HUB_LICENCES,
        chosen=chosen_weights(manifest) if stage == "grpo" else None,
        data=manifest.get("data") or {"name": config.data.name, "fingerprint": "-", "counts": {}},
        results=[row for row in folder.summary().get("results", []) if row["stage"] == stage],
        code=manifest.get("code") or {"commit": None, "dirty": None},
        packages=", ".join(f"{name} {versions[name]}" for name in versions if name in PACKAGES),
    )


def _base(config: Config) -> str | None:
    """The hub's id of the weights the run began with, if they have one."""
    backbone = config.backbone
    if backbone.source != "hub" or config.weights.name != "published" or config.init is not None:
        return None
    return None if Path(backbone.path).is_absolute() else backbone.path


def _began(config: Config) -> str:
    backbone = config.backbone
    if config.init is not None:
        return f"the weights of an earlier run of {backbone.name}"
    if backbone.source != "hub" or config.weights.name != "published":
        return f"random weights (seed {config.seed})"
    where = Path(backbone.path)
    named = f"the checkpoint `{where.name}`" if where.is_absolute() else f"`{backbone.path}`"
    revision = "" if backbone.revision == "main" else f" at revision `{backbone.revision}`"
    return f"{named}{revision}"
