"""Stages: one file and one YAML file each, and nothing heavy before `run`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from iad_r1 import stages
from iad_r1.command import compose
from iad_r1.command.options import groups
from iad_r1.errors import ConfigError

HELLO = '''"""`stage=hello`: greet."""

from collections.abc import Iterator

from iad_r1 import stages
from iad_r1.settings.base import Count
from iad_r1.settings.config import Config
from iad_r1.settings.stage import StageSettings
from iad_r1.store.run_folder import RunFolder


class Settings(StageSettings):
    times: Count


class Stage(stages.Stage):
    def problems(self, config: Config) -> Iterator[str]:
        if config.stage.times > 3:
            yield "stage.times: nobody wants to be greeted that often."

    def announce(self, config: Config, output: str) -> Iterator[str]:
        yield f"a greeting, {config.stage.times} times"

    def run(self, config: Config, folder: RunFolder) -> None:
        folder.write_json("hello.json", ["hello"] * config.stage.times)
'''
HELLO_YAML = "# A greeting\nname: hello\ntasks: []\ntimes: 2\n"


@pytest.fixture(scope="module")
def copy(project_with) -> Path:
    """The project with a stage more."""
    return project_with(
        {
            "iad_r1/stages/hello.py": HELLO,
            "conf/stage/hello.yaml": HELLO_YAML,
        }
    )


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "run.py"), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_file_and_one_yaml_file_add_a_stage(copy):
    done = run(copy, "stage=hello", "name=greeting", "stage.times=3", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "a greeting, 3 times" in done.stdout
    (said,) = (copy / "outputs" / "greeting").glob("*/hello.json")
    assert said.read_text(encoding="utf-8").count("hello") == 3


def test_an_added_stage_is_in_the_help_and_its_settings_are_checked(copy):
    assert re.search(r"^ +hello +A greeting$", run(copy, "--help").stdout, re.M)
    refused = run(copy, "stage=hello", "stage.times=4")
    assert refused.returncode == 2 and "nobody wants to be greeted" in refused.stderr
    assert "stage.times=0" in run(copy, "stage=hello", "stage.times=0").stderr


def test_every_stage_of_the_command_line_is_a_module_with_its_settings():
    assert groups()["stage"] == stages.names()
    for name in stages.names():
        assert isinstance(stages.find(name), stages.Stage)
    with pytest.raises(
        ConfigError, match=r"stage\.name=nothing: must be one of 'app', 'audit', .*'sft'"
    ):
        compose.compose(["stage.name=nothing"])


def test_no_stage_loads_torch_before_it_runs(repository):
    code = (
        "import sys; from iad_r1 import stages\n"
        "for name in stages.names(): stages.find(name)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, check=False).returncode == 0
