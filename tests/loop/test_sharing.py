"""Stages that another run has carried out: what makes their key is all that they read, and a run
goes on from what it took as from what it would have made itself."""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import pandas
import pytest
from small_run import stopped

from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, pipeline
from iad_r1.rewards import RewardSet
from iad_r1.settings.base import Section
from iad_r1.store import keys, shared
from iad_r1.store.tracking import Tracker
from iad_r1.types import Score

SHORT = [
    "store.reuse=true",
    "data.sizes.sft=8",
    "data.sizes.rl=8",
    "data.sizes.validation=4",
    "data.sizes.test=4",
    "pretrain.images=8",
    "pretrain.steps=2",
    "pretrain.batch_size=4",
    "sft.phases.0.steps=2",
    "sft.phases.1.steps=1",
    "sft.phases.0.batch_size=4",
    "sft.phases.1.batch_size=4",
    "grpo.rollouts_every=1",
    "evaluate.limit=2",
]
TIMED = ("seconds", "tokens_per_second", "peak_memory", "host_memory")


@contextmanager
def settings_read(config: Section) -> Iterator[set[str]]:
    """The settings that are read inside, as they are typed."""
    where: dict[int, str] = {}

    def note(value: Any, path: str) -> None:
        if isinstance(value, Section):
            where[id(value)] = f"{path}." if path else ""
            for name in type(value).model_fields:
                note(getattr(value, name), f"{where[id(value)]}{name}")
        elif isinstance(value, Mapping):
            for name, each in value.items():
                note(each, f"{path}.{name}")
        elif isinstance(value, list | tuple):
            for each in value:
                note(each, path)

    note(config, "")
    found: set[str] = set()

    def get(self: Section, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in type(self).model_fields and not isinstance(value, Section):
            found.add(f"{where.get(id(self), '?')}{name}")
        return value

    with mock.patch.object(Section, "__getattribute__", get):
        yield found


@contextmanager
def code_called() -> Iterator[set[str]]:
    """The files of the package that functions are called from inside, in all threads."""
    found: set[str] = set()
    root = f"{keys.PACKAGE}/"

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and code.co_name != "<module>":
            found.add(code.co_filename.removeprefix(root))

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def left_out(stage: keys.Stage, path: str) -> bool:
    parts = path.split(".")
    heads = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return bool(heads & {*keys.FREE, *keys.OTHERS[stage]}) and path != keys.ALSO[stage]


# settings that a stage reads though its key leaves them out, and why that is right
HARMLESS = {
    "engine.picture_threads",  # how many prepare pictures: each is prepared alike
    "memory.features",  # what a cache may hold: features do not depend on what was asked before
}
# what an evaluation averages in the end, from its answers: that is not kept, but done again
AVERAGED = {"benchmark", "init", "stage.tasks"}


@pytest.fixture
def run(make_context: Callable[..., Context]) -> Iterator[Callable[..., Context]]:
    """`run("grpo.steps=1", ...)`: a run with these settings that has taken its tasks, with the
    record of its metrics. All have one folder `outputs`."""
    with ExitStack() as stack:

        def made(*overrides: str) -> Context:
            context: Context = make_context(*SHORT, *overrides)
            folder = context.folder.path
            tracker = Tracker(context.config.tracking, folder, {})
            context.tracker = stack.enter_context(tracker)
            return context

        yield made


def taken(context: Context) -> set[str]:
    """The stages whose results a run has taken from another."""
    notes = context.folder.read_json("manifest.json")["store"]
    return {name for name, note in notes.items() if "taken" in note}


def carried_out(context: Context) -> Context:
    pipeline.take_tasks(context)
    return context


def lines(context: Context) -> list[dict[str, Any]]:
    """What was logged, less what time it took."""
    text = (context.folder.path / "metrics.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]


def left(context: Context) -> dict[str, Any]:
    """All that a run leaves and a later one may read."""
    folder = context.folder
    answers = {f.name: f.read_bytes() for f in (folder.path / "predictions").glob("*")}
    tables = {
        f.name: repr(pandas.read_parquet(f).to_dict()) for f in folder.path.glob("rollouts/*")
    }
    weights = {
        f"{f.parent.name}/{f.name}": keys.digest(f)
        for f in folder.path.glob("checkpoints/*/*.safetensors")
        if "-step-" not in f.parent.name
    }
    summary = folder.summary()
    chosen = folder.read_json("manifest.json").get("chosen")
    return {"lines": lines(context), **answers, **tables, **weights, "chosen": chosen,
            **{name: summary.get(name) for name in ("results", "comparisons")}}  # fmt: skip


@pytest.mark.slow
def test_no_stage_reads_a_setting_or_calls_code_that_its_key_leaves_out(run):
    context = run()
    learn, ask = pipeline.learn, evaluate.run
    seen: dict[keys.Stage, tuple[set[str], set[str]]] = {}

    def watched(stage: keys.Stage, work: Callable[[], Any]) -> Any:
        with settings_read(context.config) as settings, code_called() as code:
            found = work()
        seen.setdefault(stage, (settings, code))  # of evaluations the first, which asks
        return found

    with (
        mock.patch.object(pipeline, "learn", lambda c, t: watched(t, lambda: learn(c, t))),
        mock.patch.object(evaluate, "run", lambda c: watched("evaluate", lambda: ask(c))),
    ):
        pipeline.take_tasks(context)
    assert set(seen) == set(keys.LOOPS)
    for stage, (settings, code) in seen.items():
        known = HARMLESS | (AVERAGED if stage == "evaluate" else set())
        assert {path for path in settings if left_out(stage, path)} <= known, stage
        assert len(settings) > 5 and len(code) > 10
        here = {"loops/pipeline.py"}  # who calls a stage
        assert {file for file in code - here if not keys.runs_in(stage, file)} == set(), stage


@pytest.mark.slow
@pytest.mark.parametrize(
    "tuning", [["tuning=full"], ["tuning=lora", "grpo.choose_on_validation=true"]], ids=str
)
def test_a_run_goes_on_from_what_it_took_as_from_what_it_would_have_made(run, tuning, monkeypatch):
    # the weights are nearly random, and would earn nothing to learn from
    monkeypatch.setattr(RewardSet, "score", lambda _, said, __: Score(float(len(said) % 5)))
    settings = [*tuning, "grpo.learning_rate=1e-2"]
    first = carried_out(run(*settings))
    assert taken(first) <= {"evaluate grpo"}  # the weights that it chose may be those before
    other = [*settings, "grpo.kl_coef=0.5"]
    after, anew = carried_out(run(*other)), carried_out(run(*other, "store.reuse=false"))
    assert {"pretrain", "sft", "evaluate pretrain", "evaluate sft"} <= taken(after)
    assert "grpo" not in taken(after) and taken(anew) == set()
    assert left(after) == left(anew)
    assert left(after) != left(first)  # SC-GRPO had something to learn
    again = carried_out(run(*other))
    assert {"grpo", "evaluate grpo"} <= taken(again)
    assert left(again) == left(anew)


def test_an_evaluation_of_given_weights_is_taken_and_asks_nobody(run):
    settings = ["stage.tasks=[evaluate]"]
    first = carried_out(run(*settings))
    with mock.patch.object(evaluate, "open_asking", side_effect=AssertionError):
        second = carried_out(run(*settings, "rewards=answer_only", "name=other"))
    assert taken(second) == {"evaluate base"}
    assert left(first) == left(second)


SFT = ["stage.tasks=[sft]"]


def test_a_damaged_result_is_said_and_made_again_in_its_place(run, capsys):
    first = carried_out(run(*SFT))
    [weights] = first.folder.outputs.glob("store/*/checkpoint/model.safetensors")
    content = weights.read_bytes()
    weights.unlink()  # a link: the file of the run stays
    weights.write_bytes(content[:-1] + b"?")
    capsys.readouterr()
    second = carried_out(run(*SFT))
    said = capsys.readouterr().out
    assert "damaged: the content of checkpoint/model.safetensors has changed" in said
    assert taken(second) == set() and left(second) == left(first)
    assert weights.read_bytes() == content
    assert taken(carried_out(run(*SFT))) == {"sft"}


def test_without_reuse_all_is_made_anew_and_takes_the_place_of_what_was_kept(run):
    first = carried_out(run(*SFT))
    [entry] = first.folder.outputs.glob("store/*/entry.json")
    anew = carried_out(run(*SFT, "store.reuse=false"))
    assert taken(anew) == set() and left(anew) == left(first)
    assert json.loads(entry.read_text())["run"] == str(anew.folder.path)


def test_a_full_disk_costs_the_store_and_not_the_run(run, capsys):
    with mock.patch.object(shared, "link", side_effect=OSError(errno.ENOSPC, "No space left")):
        context = carried_out(run(*SFT))
    assert "cannot be kept for other runs" in capsys.readouterr().out
    assert (context.folder.checkpoint("sft") / "model.safetensors").is_file()
    assert not list(context.folder.outputs.glob("store/*/entry.json"))
    assert context.folder.read_json("manifest.json")["store"]["sft"]["kept"] is False
    # what an earlier process could not keep, or was killed before it had, is kept when it goes on
    assert pipeline.taken(context.config, context.folder) == 1
    pipeline.take_tasks(context)
    assert taken(carried_out(run(*SFT))) == {"sft"}


def test_what_other_code_began_is_not_kept(run, capsys):
    context = stopped(run(*SFT), 0, pipeline.take_tasks)
    with mock.patch.object(keys, "code_of", return_value="other code"):
        carried_out(context)
    assert "PA-SFT was begun by other code" in capsys.readouterr().out
    assert not list(context.folder.outputs.glob("store/*/entry.json"))


def test_a_run_that_goes_on_may_find_its_stage_done_by_another(run):
    halfway = stopped(run(*SFT), 0, pipeline.take_tasks)
    calm = carried_out(run(*SFT))
    assert left(carried_out(halfway)) == left(calm)
    assert taken(halfway) == {"sft"}
    card = (halfway.folder.checkpoint("sft") / "README.md").read_text(encoding="utf-8")
    assert f"PA-SFT: taken from {calm.folder.path.parent.name}/{calm.folder.path.name}" in card
