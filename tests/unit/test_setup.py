"""The set-up: the pinned versions, the Makefile, and torchvision beside a CPU torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

SITE = Path(sysconfig.get_paths()["purelib"])
HOOK = "setup/torchvision_without_cuda.py"


def python(code: str, executable: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(executable), "-c", code], capture_output=True, text=True, timeout=300
    )


# --- torchvision ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchvision_and_the_processors_that_need_it_can_be_imported_also_in_a_child_process():
    code = (
        "import torchvision; from torchvision.transforms.v2 import functional;"
        "from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor,"
        " LlavaOnevisionVideoProcessor"
    )
    nested = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}]))"
    done = python(nested)
    assert done.returncode == 0, done.stderr


def test_starting_python_imports_neither_torch_nor_torchvision():
    done = python("import sys; print(sorted({'torch', 'torchvision'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]"


@pytest.fixture
def without_hook(tmp_path) -> Path:
    """The interpreter of an environment that sees these packages but not the installed hook."""
    venv.create(tmp_path / "venv", with_pip=False)
    folder = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    # A path named in a .pth file is searched for modules, but its own .pth files do not run.
    (folder / "packages.pth").write_text(f"{SITE}\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_the_hook_is_installed_where_torchvision_fails_without_it(repository, without_hook):
    done = subprocess.run(
        [without_hook, repository / HOOK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    after = python("import torchvision, torch; print(torch.ops.torchvision.nms)", without_hook)
    assert after.returncode == 0 and "torchvision.nms" in after.stdout
    if "installed the hook" not in done.stdout:
        pytest.skip("this torchvision fits its torch: there is nothing to work around")


def test_the_hook_is_removed_where_torchvision_works_without_it(repository, without_hook):
    folder = next(without_hook.parents[1].glob("lib/python*/site-packages"))
    for suffix in ("py", "pth"):
        (folder / f"torchvision_without_cuda.{suffix}").write_text("")
    package = folder / "torchvision"  # found before the real one: an installation that works
    package.mkdir()
    (package / "__init__.py").touch()
    done = subprocess.run(
        [without_hook, repository / HOOK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("torchvision_without_cuda.*"))


def test_another_failure_of_torchvision_is_reported_and_not_papered_over(repository, without_hook):
    folder = next(without_hook.parents[1].glob("lib/python*/site-packages"))
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("raise ImportError('disk on fire')\n")
    done = subprocess.run(
        [without_hook, repository / HOOK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "not for the known reason" in done.stderr and "disk on fire" in done.stderr
    assert not (folder / "torchvision_without_cuda.pth").exists()


# --- versions ------------------------------------------------------------------------------------


def constraints(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    return {_canonical(name): version for name, _, version in (p.partition("==") for p in pins)}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_to_a_version_it_allows(repository):
    pins = constraints(repository)
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name, operator, version = re.split(r"(==|>=)", requirement.partition(",")[0])
        pinned = pins[_canonical(re.sub(r"\[.*\]", "", name))]
        if operator == "==":
            assert pinned == version, requirement
        else:
            assert _numbers(pinned) >= _numbers(version), requirement


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def test_a_gpu_installation_is_not_bound_to_the_cpu_environment(repository):
    text = (repository / "constraints.txt").read_text() + (
        repository / "pyproject.toml"
    ).read_text()
    for word in ("+cpu", "index-url", "find-links", "file:", "://"):
        assert word not in text, word


# --- make ----------------------------------------------------------------------------------------


@pytest.fixture
def make(repository, tmp_path):
    """Runs the Makefile in a folder that was never set up."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    shutil.copy(repository / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / "setup").mkdir()
    (tmp_path / HOOK).touch()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-C", str(tmp_path), *arguments], capture_output=True, text=True, timeout=300
        )

    return run


def test_make_says_which_python_it_needs_when_there_is_none(make, tmp_path):
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("setup", f"CANDIDATES=no-such-python {old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_uses_the_first_python_that_runs_and_is_new_enough(make, tmp_path):
    broken = tmp_path / "python-broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    candidates = f"no-such-python {broken} {sys.executable} {sys.executable}-unused"
    found = make("--eval", "which: ; @$(FIND_PYTHON)", "which", f"CANDIDATES={candidates}")
    assert sys.executable in found.stdout.splitlines(), found.stdout + found.stderr
    assert str(broken) not in found.stdout


def test_make_reuses_what_was_set_up(make, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".set-up").touch()
    assert "Nothing to be done" in make("setup").stdout


def test_make_help_lists_every_target(make):
    shown = make("help").stdout
    for target in ("setup", "run", "test", "test-system", "check"):
        assert re.search(rf"^{target} +\S", shown, re.M), target
