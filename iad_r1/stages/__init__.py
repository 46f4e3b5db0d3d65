"""What can be asked for: one file for each `stage=`, with its settings, its checks and its `run`.

A stage is a module with two classes: `Settings`, the types of `conf/stage/<name>.yaml`, and
`Stage`. Nothing here imports torch before `run`, so a wrong setting is answered at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from iad_r1.errors import ConfigError
from iad_r1.settings import modules
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder


class Stage(ABC):
    """One `stage=`: what it checks, what it says before it starts, and what it does.

    Attributes:
        ranked: it runs on every rank that `engine` asks for; else in one process.
        saves: it may take minutes to save when it is asked to end.
        paths: its settings that hold a path, such as `stage.completions`, or a list of them.
        paths_or_names: those that hold a path if they are spelled as one, or if it is there.
        shortcuts: settings outside `stage` that its YAML file hands on to it.
        inherits: sections and settings that it takes from the weights which `init` names, unless
            they are typed (`command/inherit.py`).
        rollouts: those it works with; none: with all.
        imports: modules that `run` needs and that take seconds to load. They are loaded before,
            while Ctrl-C may still end the process at once.
    """

    ranked = False
    saves = True
    paths: tuple[str, ...] = ()
    paths_or_names: tuple[str, ...] = ()
    shortcuts: tuple[str, ...] = ()
    inherits: tuple[str, ...] = ()
    rollouts: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def problems(self, config: Config) -> Iterator[str]:
        """A sentence for each setting that this stage cannot work with."""
        return iter(())

    def check_inputs(self, config: Config) -> None:
        """Make sure that the folders which the settings name are there and fit: here, `init`.

        Raises ConfigError, DataError or WeightsError.
        """
        if config.init is not None:
            RunFolder.open(config.init)

    def check_weights(self, config: Config, outputs: Path) -> bool:
        """Make sure that there are weights to start from; whether all of them are on this machine.

        Raises WeightsError if they are missing, ConfigError if they are not trained far enough.
        """
        return True

    def announce(self, config: Config, output: str) -> Iterator[str]:
        """What the run is about to do, one line each; `output` is where it will write."""
        yield config.stage.name
        yield row("output", output)

    def parts(self, config: Config, folder: RunFolder) -> Iterator[RunFolder]:
        """Runs that are carried out before this one, below its folder, one after the other. Each
        has a process of its own, so one that fails leaves the others and this one as they are."""
        return iter(())

    @abstractmethod
    def run(self, config: Config, folder: RunFolder) -> int | None:
        """Do it. Returns the exit code of the process where that says something; None is 0."""


def find(name: str) -> Stage:
    """The stage of that name. ConfigError that lists them if there is none."""
    if name not in names():
        raise ConfigError(f"stage.name={name}: must be one of {', '.join(map(repr, names()))}.")
    stage: Stage = modules.find(__name__, name).Stage()
    return stage


def names() -> list[str]:
    """Every stage there is."""
    return modules.names(__name__)


def row(name: str, text: str) -> str:
    """One line of what `announce` says."""
    return f"  {name:<9} {text}"
