"""What of its data a run reads.

Readers are imported to check a configuration, and with them this package: so nothing heavy is
imported here but inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

from iad_r1.errors import DataError

if TYPE_CHECKING:
    from iad_r1.nearest.alike import Alike
    from iad_r1.settings.config import Config
    from iad_r1.settings.data import ReaderSettings
    from iad_r1.types import Dataset

Part = Literal["train", "validation", "test"]
EVERY: frozenset[Part] = frozenset(("train", "validation", "test"))


def benchmarks(config: Config) -> Mapping[str, ReaderSettings]:
    """The benchmarks that a run tests on."""
    tests = "evaluate" in config.tasks() and "test" in config.evaluate.splits
    return config.benchmark if tests else {}


def parts(config: Config) -> frozenset[Part]:
    """What of `data` a run reads; where benchmarks test, that is no test part."""
    tasks = config.tasks()
    found: set[Part] = set(config.evaluate.splits) if "evaluate" in tasks else set()
    answers = config.method.name == "model"
    # a tokenizer that is built here learns its words from SFT targets
    grows_words = answers and config.backbone.source == "built" and config.init is None
    if grows_words or {"sft", "grpo", "parity"} & set(tasks):
        found.add("train")
    return frozenset(found - {"test"} if benchmarks(config) else found)


def sources(config: Config) -> dict[str, ReaderSettings]:
    """What a run reads, by the section of its settings."""
    tests = {f"benchmark.{name}": found for name, found in benchmarks(config).items()}
    own = {f"data{key}": found for key, found in config.data.members().items()}
    return {**own, **tests} if parts(config) or not tests else tests


def for_run(config: Config) -> Dataset:
    """All that a run reads. Raises DataError."""
    from iad_r1.data import cache, mix
    from iad_r1.grid import as_grid

    alike = _alike(config)
    with cache.Kept() as kept:
        found = mix.load(
            config.data,
            as_grid(config.grid),
            config.grid.mask_rule,
            config.seed,
            parts(config),
            benchmarks(config),
            config.evaluate.limit,
            partial(mix.inspect, kept=kept),
            alike and alike.nearest,
        )
    if alike is not None and not alike.ranked:
        raise DataError(
            "reference_choice=nearest has nothing to choose: these data bring references of their "
            "own. Use reference_choice=drawn, which leaves those as they are."
        )
    return found


def _alike(config: Config) -> Alike | None:
    """Who ranks references; None: the seed draws them."""
    if config.reference_choice == "drawn":
        return None
    from iad_r1.data import images
    from iad_r1.nearest.alike import Alike

    return Alike(images.open_image)
