"""Where the weights of a published backbone are, without loading them (and without torch)."""

from __future__ import annotations

from pathlib import Path

from iad_r1.config import HubBackbone
from iad_r1.errors import WeightsError

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # safetensors only: no pickles


def local(backbone: HubBackbone) -> Path | None:
    """The folder that holds the weights on this machine: the one that was named, or the snapshot
    in the Hugging Face cache. None if there is none, or if the weights in it are incomplete."""
    folder = Path(backbone.path)
    if folder.is_absolute():
        return folder if _complete(folder) else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            backbone.path, revision=backbone.revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(snapshot) if _complete(Path(snapshot)) else None


def require(backbone: HubBackbone) -> Path | None:
    """Make sure the weights can be had. The folder if they are here, None if the hub has them.

    WeightsError says what was looked for, where, and how to provide it.
    """
    found = local(backbone)
    if found is None:
        reason = _absence(backbone)
        if reason:
            raise WeightsError(_sentence(backbone, reason))
    return found


def fetch(backbone: HubBackbone) -> Path:
    """The folder with the weights, downloaded into the Hugging Face cache if need be."""
    found = require(backbone)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(backbone.path, revision=backbone.revision, allow_patterns=FILES))


def _complete(folder: Path) -> bool:
    """Whether a checkpoint is whole: its index, if it has one, names only files that are there."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    import json

    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def _absence(backbone: HubBackbone) -> str | None:
    """Why the hub cannot deliver, or None if it can."""
    if Path(backbone.path).is_absolute():
        return "that folder does not hold config.json and all of its *.safetensors"
    from huggingface_hub import HfApi, constants

    cache = f"the Hugging Face cache {constants.HF_HUB_CACHE} does not hold them"
    if constants.HF_HUB_OFFLINE:
        return f"{cache}, and HF_HUB_OFFLINE forbids asking the hub"
    try:
        HfApi().model_info(backbone.path, revision=backbone.revision, timeout=5)
    except Exception as error:  # whatever the HTTP library raises; the reason is passed on
        return f"{cache}, and {constants.ENDPOINT} does not deliver ({_short(error)})"
    return None


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


def _sentence(backbone: HubBackbone, reason: str) -> str:
    revision = "" if backbone.revision == "main" else f" at revision {backbone.revision}"
    return (
        f"the weights of {backbone.name} ({backbone.path}{revision}) are not here: {reason}; give "
        "their folder with backbone.path=<folder>, set HF_HOME to a cache that holds them, or "
        "rehearse the same steps with backbone=tiny."
    )
