"""`python run.py` as a user types it: each test starts the real command."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from iad_r1.backbones import hub
from iad_r1.command import compose, launch, options
from iad_r1.errors import WeightsError, setting
from iad_r1.settings.backbone import HubBackbone
from iad_r1.store.run_folder import write_json

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds: a busy machine is not a failure
HEAVY = {"torch", "transformers", "pandas", "numpy", "scipy", "sklearn", "wandb", "matplotlib"}
DEFECT = "<location>top left</location><type>scratch</type><answer>Yes</answer>"
CLEAN = "<answer>No</answer>"
COMPLETIONS = [
    (f"<think>A scratch.</think>{DEFECT}", DEFECT),
    (f"<think>Nothing unusual.</think>{CLEAN}", CLEAN),
]


def environment(**added: str) -> dict[str, str]:
    """The tests' own environment without what would change where things are looked for."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HYDRA_"))}
    return {**kept, "WANDB_MODE": "disabled", **added}


def command(*arguments: str, python: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *python, str(REPOSITORY / "run.py"), *arguments]


def run(*arguments: str, cwd: Path, python: tuple[str, ...] = (), **env: str):
    return subprocess.run(
        command(*arguments, python=python),
        cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def imported(importtime: str) -> set[str]:
    """Top-level packages in the output of `python -X importtime`."""
    return {line.rpartition("|")[2].strip() for line in importtime.splitlines() if "|" in line}


def only_run(folder: Path) -> Path:
    (found,) = folder.glob("outputs/*/*")
    return found


@pytest.fixture
def completions(tmp_path) -> Path:
    """A file of completions that `stage=audit` reads: the lightest real run there is."""
    rows = [{"completion": text, "solution": truth} for text, truth in COMPLETIONS]
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# --- looking around ------------------------------------------------------------------------------


def test_help_lists_every_option_with_a_line_about_it_and_imports_nothing_heavy(tmp_path):
    shown = run("--help", cwd=tmp_path, python=("-X", "importtime"))
    assert shown.returncode == 0
    for group, names in options.groups().items():
        brought = r"( \(with (stage=\w+|study=<study>)\))?"
        assert re.search(rf"^{group}{brought}$", shown.stdout, re.M), group
        for option in names:
            about = re.escape(options.description(group, option))
            assert re.search(rf"^[* ] {re.escape(option)} +{about}$", shown.stdout, re.M), option
    assert "* pipeline" in shown.stdout and "* tiny" in shown.stdout
    assert [line for line in shown.stdout.splitlines() if len(line) > 80] == []
    assert not HEAVY & imported(shown.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_message_exit_code_2_and_nothing_heavy(tmp_path):
    failed = run("grpo.group_size=1", "grpo.kl_coef=-1", cwd=tmp_path, python=("-X", "importtime"))
    said = [line for line in failed.stderr.splitlines() if not line.startswith("import time:")]
    assert failed.returncode == 2
    assert len([line for line in said if line]) == 2
    assert said[1].startswith("error: grpo.group_size=1: ")
    assert not HEAVY & imported(failed.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argument", ["grpo.lerning_rate=1", "backbone=qwen", "seed=[", "data=photos"]
)
def test_no_mistake_ends_in_a_traceback(argument, tmp_path):
    failed = run(argument, cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.strip().startswith("error: ")
    assert "Traceback" not in failed.stderr + failed.stdout
    assert "HYDRA_FULL_ERROR" not in failed.stderr


def test_cfg_job_prints_the_settings_as_yaml(tmp_path):
    shown = run("--cfg", "job", "--resolve", "stage=sft", "sft.learning_rate=2e-5", cwd=tmp_path)
    settings = yaml.safe_load(shown.stdout)
    assert float(settings["sft"]["learning_rate"]) == 2e-5
    assert settings["stage"]["name"] == "sft"


def test_dry_run_prints_settings_and_plan_and_starts_nothing(tmp_path):
    shown = run("dry_run=true", "seed=7", "stage=sft", cwd=tmp_path)
    assert shown.returncode == 0
    settings, _, plan = shown.stdout.partition("\n\n")
    assert yaml.safe_load(settings)["seed"] == 7
    assert "sft on tiny, data synthetic" in plan
    assert "pretrain -> sft -> evaluate -> report" in plan
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_study_has_the_settings_of_its_arm(tmp_path):
    shown = run("study=rewards", "scale=tiny", "study.arm=answer", "dry_run=true", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    settings = yaml.safe_load(shown.stdout.partition("\n\n")[0])
    assert settings["study"] == {"name": "rewards", "arm": "answer", "scale": "tiny"}
    assert settings["rewards"]["name"] == "answer"


def test_dry_run_says_what_would_stop_the_run(tmp_path):
    shown = run("dry_run=true", "stage=grpo", cwd=tmp_path)
    assert shown.returncode == 0
    assert "It would not start: stage=grpo would start from weights without PA-SFT" in shown.stdout


def test_where_runs_are_jobs_a_run_that_is_no_sweep_does_not_start_here_instead(tmp_path):
    started = run("cluster=gpu", "stage=sft", cwd=tmp_path)
    assert started.returncode == 2
    assert "submitit_slurm sends the runs of a sweep" in started.stderr
    assert "Add -m" in started.stderr
    assert list(tmp_path.iterdir()) == []


# --- weights that are not here -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids asking the hub"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not deliver"),
    ],
)
def test_missing_weights_end_in_one_sentence_after_the_plan(env, reason, tmp_path):
    home = tmp_path / "hf"
    ended = run("stage=grpo", "backbone=qwen25vl_3b", cwd=tmp_path, HF_HOME=str(home), **env)
    assert ended.returncode == 2
    assert "grpo on qwen25vl_3b" in ended.stdout and "6 prompts x 4 completions" in ended.stdout
    (sentence,) = ended.stderr.strip().splitlines()
    said = ["Qwen/Qwen2.5-VL-3B-Instruct", str(home), reason, "backbone.path=<folder>", "HF_HOME",
            "weights=tiny"]  # fmt: skip
    assert all(text in sentence for text in said), sentence
    assert not (tmp_path / "outputs").exists()


def published(path: str) -> HubBackbone:
    made = compose.compose(["backbone=qwen25vl_3b", f"backbone.path={path}"])
    assert isinstance(made.backbone, HubBackbone)
    return made.backbone


def test_weights_count_as_here_only_when_every_file_of_their_index_is(tmp_path):
    backbone = published(str(tmp_path))
    assert hub.local(backbone) is None
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert hub.local(backbone) is None
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    with pytest.raises(WeightsError, match=r"does not hold config\.json and all of its"):
        hub.require(backbone)
    (tmp_path / "model-2.safetensors").touch()
    assert hub.require(backbone) == tmp_path
    assert hub.fetch(backbone) == tmp_path


def test_weights_in_the_hugging_face_cache_are_found(tmp_path):
    cache = tmp_path / "hub" / "models--Qwen--Qwen2.5-VL-3B-Instruct"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (snapshot / "model.safetensors").touch()
    ended = run(
        "stage=grpo",
        "backbone=qwen25vl_3b",
        cwd=tmp_path,
        HF_HOME=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    # the weights are no longer the problem: that they were never fine-tuned is
    assert ended.returncode == 2
    assert "would start from weights without PA-SFT" in ended.stderr


# --- starting from an earlier run ----------------------------------------------------------------


def test_grpo_without_an_earlier_run_says_so_and_what_to_type(tmp_path):
    ended = run("stage=grpo", cwd=tmp_path)
    assert ended.returncode == 2
    assert "without PA-SFT" in ended.stderr and "stage=sft" in ended.stderr
    assert "grpo.from_base=true" in ended.stderr


def earlier_run(folder: Path, stage: str, backbone: str = "tiny") -> Path:
    path = folder / "outputs" / "sft-tiny-synthetic" / "2026-01-02_03-04-05"
    (path / "checkpoints" / stage).mkdir(parents=True)
    (path / "checkpoints" / stage / "config.json").write_text("{}")
    (path / "config.json").write_text(json.dumps({"backbone": {"name": backbone}}))
    return path


def test_grpo_proposes_the_latest_run_with_fine_tuned_weights(tmp_path):
    earlier_run(tmp_path, "sft")
    ended = run("stage=grpo", cwd=tmp_path)
    assert "init=outputs/sft-tiny-synthetic/2026-01-02_03-04-05" in ended.stderr


def test_grpo_from_a_run_that_was_only_pretrained_is_refused(tmp_path):
    path = earlier_run(tmp_path, "pretrain")
    ended = run("stage=grpo", f"init={path}", cwd=tmp_path)
    assert ended.returncode == 2 and "was only pre-trained" in ended.stderr


def test_an_earlier_run_of_another_backbone_is_refused(tmp_path):
    earlier_run(tmp_path, "sft", backbone="llava15_7b")
    ended = run("stage=grpo", "init=outputs/sft-tiny-synthetic/2026-01-02_03-04-05", cwd=tmp_path)
    assert ended.returncode == 2
    assert "Add backbone=llava15_7b" in ended.stderr
    assert "grpo on tiny" not in ended.stdout  # refused before the plan


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_settings_its_manifest_and_its_result(tmp_path, completions):
    done = run("stage=audit", f"stage.completions={completions.name}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    assert str(folder) in done.stdout
    settings = json.loads((folder / "config.json").read_text())
    assert settings["stage"]["completions"] == str(completions)
    record = json.loads((folder / "manifest.json").read_text())
    assert record["status"] == "finished" and record["packages"]["torch"]
    assert json.loads((folder / "audit.json").read_text())["n"] == len(COMPLETIONS)
    assert not (folder / "error.txt").exists()


def test_a_run_can_be_repeated_from_its_folder_alone(tmp_path, completions):
    run("stage=audit", f"stage.completions={completions}", cwd=tmp_path)
    folder = only_run(tmp_path)
    (folder / "audit.json").rename(folder / "first.json")
    again = subprocess.run(
        [sys.executable, "-m", "iad_r1.command.worker", str(folder)],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (folder / "audit.json").read_text() == (folder / "first.json").read_text()


def test_an_error_a_user_can_act_on_is_shown_without_a_traceback_and_kept_with_it(tmp_path):
    (tmp_path / "empty").mkdir()
    failed = run("stage=audit", "stage.completions=empty", cwd=tmp_path)
    assert failed.returncode == 2
    assert "error: no completions in" in failed.stderr and "Traceback" not in failed.stderr
    folder = only_run(tmp_path)
    assert "Traceback" in (folder / "error.txt").read_text()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "refused"


def test_an_unforeseen_error_is_shown_in_full_and_kept(tmp_path, completions):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.py").write_text("def score(case):\n    return 1 / 0\n")
    failed = run(
        "stage=audit", f"stage.completions={completions}",
        "+rewards.components.broken={function: own.broken, weight: 1.0, gate: null}",
        cwd=tmp_path, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    folder = only_run(tmp_path)
    assert "ZeroDivisionError" in (folder / "error.txt").read_text()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"


def test_where_nothing_can_be_written_one_sentence_says_so(tmp_path, completions):
    (tmp_path / "outputs").symlink_to("/sys/kernel")
    failed = run("stage=audit", f"stage.completions={completions}", cwd=tmp_path)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert re.search(r"error: .*outputs.*(not permitted|denied|[Rr]ead-only)", failed.stderr)


def test_a_full_disk_is_said_in_one_sentence_and_leaves_the_run_to_be_gone_on_with(
    tmp_path, completions
):
    (tmp_path / "own").mkdir()
    program = (
        "def score(case):\n    with open('/dev/full', 'w') as file:\n        file.write('x')\n"
    )
    (tmp_path / "own" / "full.py").write_text(program)
    failed = run(
        "stage=audit", f"stage.completions={completions}",
        "+rewards.components.full={function: own.full, weight: 1.0, gate: null}",
        cwd=tmp_path, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert re.search(r"error: .*No space left.*the same command with resume=auto", failed.stderr)
    assert json.loads((only_run(tmp_path) / "manifest.json").read_text())["status"] == "running"


def test_a_sweep_runs_each_job_by_itself_and_ends_with_a_table(tmp_path, completions):
    done = run(
        "-m", "stage=audit", f"stage.completions={completions}", "rewards=sc_grpo,answer_only",
        "name=${rewards.name}", cwd=tmp_path, COLUMNS="200",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("sc_grpo", "answer_only"):
        (folder,) = (tmp_path / "outputs" / name).iterdir()
        assert json.loads((folder / "config.json").read_text())["rewards"]["name"] == name
    table = done.stdout[done.stdout.index("Runs of this sweep") :]
    for number, name in enumerate(("sc_grpo", "answer_only")):
        assert re.search(rf"^ *{number} +rewards={name} *$", table, re.M)
        assert re.search(rf"^ *{number} +ok ", table, re.M)


def test_the_table_of_a_sweep_cuts_nothing_at_80_columns(tmp_path, monkeypatch, capsys):
    """What differs between the runs is there to the letter, brackets included, and the numbers of
    a run are one line."""
    long = "rewards=answer+consistency+location+type grpo.advantage=leave_one_out"
    settings = [f"{long} seed={seed} tuning.train=[language]" for seed in range(5)]
    settings.append("rewards=answer_only grpo.advantage=no_std seed=0 tuning.train=[vision]")
    for number, differing in enumerate(settings):
        results = [
            {"stage": "grpo", "split": split, "shots": shots,
             "balanced_accuracy": 90.0 + number, "location_accuracy": 60.0 + shots}
            for split in ("seen", "new") for shots in (0, 1)
        ]  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        write_json(folder / "summary.json", {"results": results, "seconds": {"grpo": 90.0}})
        overrides = ["stage=grpo", *differing.split()]
        job = {"number": number, "overrides": overrides, "code": 0, "folder": str(folder)}
        write_json(folder / "job.json", job)
    monkeypatch.setenv("COLUMNS", "80")

    sweep = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    launch.SweepTable().on_multirun_end(sweep)

    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    listed, numbers = " ".join(printed.split()), printed.splitlines()
    for number, differing in enumerate(settings):
        assert f" {number} {differing} " in listed
        seen, new = f"{90 + number}.0 / 60.0", f"{90 + number}.0 / 61.0"
        line = [str(number), "ok", "1.5", seen, new, seen, new]
        assert [re.split(r" {2,}", text.strip()) for text in numbers].count(line) == 1
    assert "stage=grpo" not in printed and "…" not in printed


def test_a_sweep_goes_on_after_a_refused_run_and_reports_it(tmp_path, completions):
    done = run(
        "-m", "stage=audit", f"stage.completions={tmp_path / 'nothing'},{completions}",
        cwd=tmp_path, COLUMNS="200",
    )  # fmt: skip
    assert done.returncode == 2
    table = done.stdout[done.stdout.index("Runs of this sweep") :]
    assert "refused" in table and "ok" in table


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_run_ends_its_worker_and_says_where_it_left_off(number, code, tmp_path):
    process = subprocess.Popen(
        command(), cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    folder = wait_for_running(tmp_path, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    assert f"stopped. What was written stays in {folder}" in said
    assert "Traceback" not in said
    assert json.loads((folder / "manifest.json").read_text())["status"] == "stopped"
    assert not workers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_run_stopped_while_its_worker_is_starting_ends_in_the_same_words(
    number, code, ranks, tmp_path
):
    process = subprocess.Popen(
        command(f"engine.ranks={ranks}"), cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not any("-m iad_r1." in text for text in workers(tmp_path)):
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    assert "stopped. What was written stays in" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_worker_does_not_outlive_a_command_that_was_killed(tmp_path):
    process = subprocess.Popen(
        command(), cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = wait_for_running(tmp_path, process)
    assert workers(folder)
    process.kill()
    process.wait(timeout=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while workers(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(folder)


CHILD = """
import os, sys, time
from pathlib import Path
from iad_r1.processes import ranks
sys.platform = "another"
ranks.end_with_parent()
Path("ready").touch()
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
from iad_r1.processes import ranks
os.environ[ranks.PARENT] = str(os.getpid())
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it_also_where_linux_does_not_see_to_it(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        cwd=tmp_path, env=environment(PYTHONPATH=str(REPOSITORY)),
    )  # fmt: skip
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait(timeout=PATIENCE)
    assert not psutil.wait_procs([child], timeout=60)[1]


def wait_for_running(tmp_path: Path, process: subprocess.Popen) -> Path:
    """The run folder, once its worker has begun."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        for file in tmp_path.glob("outputs/*/*/manifest.json"):
            if json.loads(file.read_text()).get("status") == "running":
                return file.parent
        time.sleep(0.05)
    raise AssertionError("no worker began")


def workers(folder: Path) -> list[str]:
    """Command lines of live processes that mention `folder`."""
    lines = (" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(folder) in line]


# ------------------------------------------------------------------------- what is said to type

paths = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1).map(
    "/r{}".format
)


def typed(text: str) -> dict[str, object]:
    """What a shell and Hydra make of a command."""
    overrides = OverridesParser.create().parse_overrides(compose.quoted(shlex.split(text)))
    return {one.key_or_group: one.value() for one in overrides}


@given(paths, paths)
def test_a_setting_that_is_said_to_type_is_read_as_it_was_meant(path, other):
    text = f"{setting('init', path)} {setting('runs', [path, other])}"
    read = typed(text)
    found = read["runs"]
    assert isinstance(found, list)
    assert (str(read["init"]), [*map(str, found)]) == (path, [path, other])
