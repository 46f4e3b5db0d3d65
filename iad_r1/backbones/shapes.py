"""The shapes of a run's model, from its configuration alone: no weights, no torch."""

from __future__ import annotations

from pathlib import Path

from iad_r1.backbones import hub, published
from iad_r1.errors import ConfigError
from iad_r1.planner.widths import Architecture, widths_of
from iad_r1.settings.backbone import BuiltBackbone, HubBackbone
from iad_r1.settings.config import Config


def architecture(config: Config) -> Architecture:
    """The model's shapes: of the folder that `backbone.path` names, else as published.

    ConfigError if nothing is known of the model, or if it is the tiny one.
    """
    backbone = config.backbone
    if isinstance(backbone, BuiltBackbone):
        raise ConfigError(
            f"backbone={backbone.name} has 2 million parameters and fits anywhere: there is "
            f"nothing to plan. Choose one of {', '.join(published.names())}."
        )
    if not isinstance(backbone, HubBackbone):
        raise ConfigError(
            f"backbone={backbone.name} is asked over the network: nothing is known of its shapes. "
            f"Choose one of {', '.join(published.names())}."
        )
    if not Path(backbone.path).is_absolute() and backbone.name in published.names():
        about = published.read(backbone.name)
        if about["hub"] == backbone.path:
            return widths_of(about["config"])
    return _from_folder(backbone)


def _from_folder(backbone: HubBackbone) -> Architecture:
    """From the `config.json` of a checkpoint on this machine."""
    folder = Path(backbone.path) if Path(backbone.path).is_absolute() else hub.local(backbone)
    if folder is None or not (folder / "config.json").is_file():
        raise ConfigError(
            f"backbone.path={backbone.path}: nothing is known of this model. It is none of the "
            f"published ones described here ({', '.join(published.names())}), and there is no "
            "config.json of it on this machine. Give a folder that holds one."
        )
    from transformers import AutoConfig  # fills in what the file leaves out; seconds to import

    return widths_of(AutoConfig.from_pretrained(folder).to_dict())
