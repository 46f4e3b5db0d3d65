"""`stage=app`: a page on which photographs are dropped and judged, until Ctrl-C.

    python run.py stage=app init=<run or hub id> references=<good pictures>

It is served to this machine alone unless `stage.host` says more; then it asks for a token.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from iad_r1 import stages
from iad_r1.data.arrivals import listed, references
from iad_r1.errors import ConfigError
from iad_r1.settings.config import Config
from iad_r1.settings.predict import AppSettings
from iad_r1.settings.stage import ServedSettings
from iad_r1.stages import predict, row
from iad_r1.store.run_folder import RunFolder

Settings = AppSettings
LEAST = 16  # characters of a token: nobody guesses it


class Stage(stages.Stage):
    """Judges what is dropped on a page."""

    saves = False
    paths = ("stage.references", "stage.validation")
    shortcuts = ("references", "threshold", "miss_rate", "validation")
    inherits = predict.INHERITED
    imports = ("iad_r1.loops.app",)

    def problems(self, config: Config) -> Iterator[str]:
        yield from predict.judging_problems(config)

    def check_inputs(self, config: Config) -> None:
        stage = _settings(config)
        check_gradio(stage)
        token(stage)
        check_free(stage)
        predict.check_judging(config, predict.begin(config))

    def check_weights(self, config: Config, outputs: Path) -> bool:
        return predict.find_weights(config, predict.begin(config))

    def announce(self, config: Config, output: str) -> Iterator[str]:
        stage, shots = _settings(config), len(references(config))
        if config.method.name == "patchcore":
            yield "a page that judges with nearest good patches"
        else:
            yield f"a page that judges with {config.backbone.name}, prompt {config.evaluate.prompt}"
            yield row("weights", f"{config.init}")
        yield row("served to", f"{whom(stage)}, at {stage.host}:{stage.port}")
        if stage.references is not None:
            there = len(listed(stage.references))
            yield row("reference", f"{shots} of {there:,} good pictures, unless others are dropped")
        yield from predict.threshold_rows(config, shots)

    def run(self, config: Config, folder: RunFolder) -> None:
        from iad_r1.loops import app

        app.run(config, token(_settings(config)))


def check_gradio(stage: ServedSettings) -> None:
    """ConfigError if the package that pages are made with is not there."""
    if find_spec("gradio") is None:
        raise ConfigError(
            f"the page of stage={stage.name} is made with the package gradio, which is not "
            'installed. Type: pip install "iad_r1[app]".'
        )


def token(stage: ServedSettings) -> str | None:
    """What a user has to know, from the environment; None: nothing, on this machine alone.

    ConfigError where it is missing or short.
    """
    found = os.environ.get(stage.key)
    if not found and is_loopback(stage.host):
        return None
    if not found:
        raise ConfigError(
            f"stage.host={stage.host} serves other machines too, and the environment has no "
            f"{stage.key}. Type: export {stage.key}=$(openssl rand -hex 16). A token is never read "
            "from settings, which are written down."
        )
    if len(found) < LEAST:
        raise ConfigError(
            f"the token in {stage.key} has {len(found)} characters, and {LEAST} are the least. "
            f"Type: export {stage.key}=$(openssl rand -hex 16)."
        )
    return found


def whom(stage: ServedSettings) -> str:
    """Who is served."""
    return "this machine" if is_loopback(stage.host) else f"whoever has the token in {stage.key}"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def check_free(stage: ServedSettings) -> None:
    """ConfigError if the address is taken, or none of this machine."""
    host = stage.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, stage.port), family=family).close()
    except OSError as error:
        raise ConfigError(
            f"stage={stage.name} cannot serve at {stage.host}:{stage.port} ({error.strerror}). Use "
            f"another port, stage.port={stage.port % 65535 + 1}, or an address of this machine."
        ) from error


def _settings(config: Config) -> AppSettings:
    assert isinstance(config.stage, AppSettings)
    return config.stage
