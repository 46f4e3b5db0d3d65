"""Where the weights of a published backbone are, without loading them (and without torch)."""

from __future__ import annotations

import json
from pathlib import Path

from iad_r1.backbones.families import FAMILIES
from iad_r1.errors import WeightsError
from iad_r1.settings.backbone import HubBackbone
from iad_r1.store.starts import find_start

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]  # safetensors only: no pickles


def local(backbone: HubBackbone) -> Path | None:
    """The folder that holds the weights on this machine: the one that was named (also that of an
    earlier run), or the snapshot in the Hugging Face cache. None if there is none, or if the
    weights in it are incomplete.

    WeightsError if they are there and cannot be used.
    """
    found = _named(Path(backbone.path)) if Path(backbone.path).is_absolute() else _cached(backbone)
    if found is None or not _complete(found):
        return None
    check_usable(found, backbone)
    return found


def _named(folder: Path) -> Path:
    """The checkpoint that a folder stands for: itself, or the last one of a run folder."""
    return find_start(folder).path if (folder / "checkpoints").is_dir() else folder


def _cached(backbone: HubBackbone) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(backbone.path, revision=backbone.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


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

    code = ["*.py"] if backbone.trust_remote_code else []
    folder = Path(
        snapshot_download(backbone.path, revision=backbone.revision, allow_patterns=[*FILES, *code])
    )
    check_usable(folder, backbone)
    return folder


def check_usable(folder: Path, backbone: HubBackbone) -> None:
    """WeightsError if a checkpoint has an architecture that is not known here, code of its own or
    not: what is not known can be neither trained nor sampled from."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind in FAMILIES:
        return
    if "auto_map" in config:
        raise WeightsError(
            f"the weights of {backbone.name} in {folder} need code of their own (model_type "
            f"{kind!r}), which is not run; convert them to transformers' own layout and give "
            "backbone.path=<folder>."
        )
    raise WeightsError(
        f"the weights of {backbone.name} in {folder} are of the architecture {kind!r}; known here "
        f"are {', '.join(FAMILIES)}."
    )


def _complete(folder: Path) -> bool:
    """Whether a checkpoint is whole: its index, if it has one, names only files that are there."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / shard).is_file() for shard in shards)


def _absence(backbone: HubBackbone) -> str | None:
    """Why the hub cannot deliver, or None if it can."""
    if Path(backbone.path).is_absolute():
        return _absence_here(Path(backbone.path))
    from huggingface_hub import HfApi, constants

    cache = f"the Hugging Face cache {constants.HF_HUB_CACHE} does not hold them"
    if constants.HF_HUB_OFFLINE:
        return f"{cache}, and HF_HUB_OFFLINE forbids asking the hub"
    try:
        HfApi().model_info(backbone.path, revision=backbone.revision, timeout=5)
    except Exception as error:  # whatever the HTTP library raises; the reason is passed on
        return f"{cache}, and {constants.ENDPOINT} does not deliver ({_short(error)})"
    return None


def _absence_here(folder: Path) -> str:
    pickles = any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors"))
    only = "; it holds *.bin only, and pickles are not read" if pickles else ""
    return f"that folder does not hold config.json and all of its *.safetensors{only}"


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


def _sentence(backbone: HubBackbone, reason: str) -> str:
    revision = "" if backbone.revision == "main" else f" at revision {backbone.revision}"
    return (
        f"the weights of {backbone.name} ({backbone.path}{revision}) are not here: {reason}; give "
        "their folder with backbone.path=<folder>, set HF_HOME to a cache that holds them, or "
        "rehearse the same command with weights=tiny."
    )
