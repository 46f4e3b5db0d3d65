"""Stages that some run has carried out already: their results are taken, not made again.

Around every stage: its key is looked up; if a result of that key lies in `outputs/store`, the run
gets what it would have written itself; if not, the stage is carried out and its result kept there.
Of several processes that need the same result at the same time, one makes it and the others wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iad_r1.backbones import hub
from iad_r1.data import lists
from iad_r1.data.cache import Kept
from iad_r1.learn.context import Context, Run
from iad_r1.loops import evaluate, results
from iad_r1.processes import distributed
from iad_r1.settings.config import Config
from iad_r1.store import checkpoints, keys
from iad_r1.store.keys import Stage
from iad_r1.store.manifest import name_of_stage, taken_from
from iad_r1.store.run_folder import TRAINED, RunFolder, replacing
from iad_r1.store.shared import Entry, Lock, Store, link
from iad_r1.store.starts import find_start
from iad_r1.types import Dataset, Sample

METRICS = "metrics.jsonl"
PAUSE = 0.5  # seconds between two looks at a lock that another process holds


@dataclass(frozen=True)
class Shared:
    """A stage of a run and what the store has of it; on every rank.

    key: None where nothing is shared.
    found: the result to take; None: the stage has to be carried out.
    keeps: whether the result is to be kept. Not where other code or settings began it.
    lock: of the key, on rank 0; None where results are not reused.
    """

    context: Run
    stage: Stage
    key: str | None
    found: Entry | None
    keeps: bool
    facts: Mapping[str, Any] | None
    lock: Lock | None
    began: float

    def keep(self) -> None:
        """Keep what the run has just made. Whatever stands against it costs a sentence, and not
        the result, which lies in the run folder."""
        if not distributed.is_main() or self.key is None or not self.keeps:
            return
        folder, name = self.context.folder, name_of(self.context, self.stage)
        store = Store(folder.outputs)
        seconds = time.perf_counter() - self.began
        if self.stage in TRAINED:  # that of earlier processes too
            seconds = folder.summary().get("seconds", {}).get(self.stage, seconds)
        try:
            with _may_publish(store, self.key, self.lock) as may:
                if may:
                    about = _about(self.context, self.stage, self.facts, seconds)
                    store.publish(self.key, _made(self.context, self.stage), about)
        except OSError as error:
            print(
                f"{name_of_stage(name)}: the result cannot be kept for other runs in "
                f"{store.path / self.key} ({error.strerror or error}). This run has it, and goes "
                "on.",
                flush=True,
            )
            return
        _note(folder, name, {"key": self.key, "kept": True})

    def take(self) -> None:
        """Put the result into the run, as if it had made it. Afterwards all ranks hold its weights,
        if it is a training."""
        entry, context, name = self.found, self.context, name_of(self.context, self.stage)
        assert entry is not None
        if distributed.is_main():
            saved = {"run": entry.about["run"], "seconds": entry.about["seconds"]}
            taken = {"key": self.key, "kept": True, "taken": saved}
            _note(context.folder, name, taken)
            (_take_training if self.stage in TRAINED else _take_answers)(context, self.stage, entry)
            print(taken_from(name, taken), flush=True)
        distributed.barrier()
        if self.stage in TRAINED:
            assert isinstance(context, Context)
            context.backbone.read(context.folder.checkpoint(self.stage))


@contextmanager
def shared(context: Run, stage: Stage) -> Iterator[Shared]:
    """What the store has of a stage that the run has come to. Inside, no other process carries out
    the same."""
    began, note = time.perf_counter(), None
    if isinstance(context, Context) and not context.config.engine_alone:
        _ = context.packing  # all ranks decide on it
    if distributed.is_main():
        facts = _facts(context, stage)
        key = None if facts is None else keys.key(stage, facts)
        note = key, facts, _begin(context, stage, key, facts)
    notes: list[Any] = distributed.everyone(note)
    key, facts, keeps = notes[0]
    if key is None or not context.config.store.reuse:
        yield Shared(context, stage, key, None, keeps, facts, None, began)
        return
    lock = _wait(context, stage, key)
    try:
        found = None if lock is None else _look(context, stage, key)
        found = distributed.everyone(found)[0]
        if lock is not None and found is None:
            lock.say(str(context.folder.path))
        yield Shared(context, stage, key, found, keeps, facts, lock, began)
    finally:
        if lock is not None:
            lock.close()


def name_of(context: Run, stage: Stage) -> str:
    """The name of a stage in the manifest."""
    return stage if stage in TRAINED else f"{stage} {context.stage}"


def keep_ended(context: Run, ended: Sequence[str]) -> None:
    """Keep the results of stages that an earlier process of the run ended, and was killed before
    it had kept them."""
    notes = context.folder.read_json("manifest.json").get("store", {})
    for stage in reversed(TRAINED):
        note = notes.get(stage, {})
        if stage in ended and note.get("key") is not None and not note["kept"]:
            began = time.perf_counter()
            Shared(context, stage, note["key"], None, True, note["facts"], None, began).keep()


# --- the key -------------------------------------------------------------------------------------


def _facts(context: Run, stage: Stage) -> dict[str, Any] | None:
    """All that the result of a stage depends on; None where it is not known: of random weights, and
    of outside models."""
    parent = _parent(context)
    if parent is None or context.backbone is None:
        return None
    assert isinstance(context, Context)
    config, plain = context.config, context.config.model_dump(mode="json")
    with Kept() as kept:
        pictures = lists.fingerprint(_lists(config, context.dataset, stage), kept)
    return {
        "settings": keys.settings_of(stage, plain),
        "files": keys.users_code(stage, plain),
        "pictures": pictures,
        "weights": keys.weights(parent),
        "code": keys.code_of(stage),
        "libraries": keys.versions(),
        "device": distributed.device(config.engine).type,
        "alone": config.engine_alone,
        "packing": None if config.engine_alone else context.packing,
        "image_processor": context.backbone.pictures,
    }


def _lists(config: Config, dataset: Dataset, stage: Stage) -> dict[str, Sequence[Sample]]:
    """The samples that a stage reads."""
    if stage == "pretrain":
        assert config.pretrain is not None
        return {"sft": dataset.sft} if config.pretrain.photographs else {}
    if stage == "sft":
        return {"learned": getattr(dataset, config.sft.samples)}
    if stage == "grpo":
        chooses = config.grpo.choose_on_validation
        by = {
            f"validation.{n}": results.yes_no(s) for n, s in dataset.validation.items() if chooses
        }
        return {"learned": dataset.rl, **by}
    return results.splits(config, dataset)


def _parent(context: Run) -> Path | None:
    """The folder of the weights as they are now; None if they are in none."""
    config, folder = context.config, context.folder
    if config.weights.name == "random" or config.backbone.source == "api":
        return None
    if folder.checkpoint(context.stage).is_dir():  # trained here, or built
        return folder.checkpoint(context.stage)
    if config.init is not None:
        return find_start(config.init).path
    return hub.local(config.backbone) if config.backbone.source == "hub" else None


def _begin(context: Run, stage: Stage, key: str | None, facts: Mapping[str, Any] | None) -> bool:
    """Note in the manifest under which key a stage begins; whether its result may be kept. Not if
    an earlier process began it under another one, and some of its work is there."""
    folder, name = context.folder, name_of(context, stage)
    before = folder.read_json("manifest.json").get("store", {}).get(name, {})
    begun = bool(_unfinished(context, stage))
    keeps = key is not None and (not begun or before.get("key") == key)
    if begun and not keeps and key is not None:
        print(
            f"{name_of_stage(name)} was begun by other code, or with other settings: what comes of "
            "it is not kept for other runs.",
            flush=True,
        )
    _note(folder, name, {"key": key if keeps else None, "kept": False, "facts": facts})
    return keeps


def _unfinished(context: Run, stage: Stage) -> Sequence[Any]:
    """What an earlier process of the run left of a stage."""
    if stage in TRAINED:
        return checkpoints.unfinished(context.folder.path / "checkpoints", stage)
    answered = [context.folder.predictions(context.stage, *part) for part in _parts(context)]
    return [file for file in answered if file.is_file()]


def _note(folder: RunFolder, name: str, note: Mapping[str, Any]) -> None:
    noted = folder.read_json("manifest.json").get("store", {})
    folder.update_manifest(store={**noted, name: note})


# --- whose turn it is ----------------------------------------------------------------------------


def _wait(context: Run, stage: Stage, key: str) -> Lock | None:
    """The lock of a key, on rank 0, once no other process holds it. Ranks ask together, or those
    that have nothing to do would give up on rank 0."""
    lock = Store(context.folder.outputs).lock(key) if distributed.is_main() else None
    said: set[str] = set()
    while True:
        free = distributed.everyone(lock is None or lock.tried())[0]
        if free:
            return lock
        if lock is not None and (run := lock.said()) and run not in said:
            said.add(run)
            words = name_of_stage(name_of(context, stage))
            print(
                f"{words}: the run {run} is at it with the same settings; waiting ...", flush=True
            )
        time.sleep(PAUSE)


@contextmanager
def _may_publish(store: Store, key: str, held: Lock | None) -> Iterator[bool]:
    """Whether this process may: it holds the lock of the key, or gets it now. Else another one is
    making the same result, or taking it."""
    lock = held or store.lock(key)
    try:
        yield lock is held or lock.tried()
    finally:
        if lock is not held:
            lock.close()


def _look(context: Run, stage: Stage, key: str) -> Entry | None:
    store = Store(context.folder.outputs)
    entry, damage = store.sound(key)
    if damage is not None:
        print(
            f"{store.path / key} is damaged: {damage}. {name_of_stage(name_of(context, stage))} is "
            "carried out again, and takes its place.",
            flush=True,
        )
    return entry


# --- what is kept of a stage ---------------------------------------------------------------------


def _about(
    context: Run, stage: Stage, facts: Mapping[str, Any] | None, seconds: float
) -> dict[str, Any]:
    manifest = context.folder.read_json("manifest.json")
    return {
        "stage": stage,
        "run": str(context.folder.path),
        "seconds": seconds,
        "hardware": manifest.get("hardware"),
        "commit": (manifest.get("code") or {}).get("commit"),
        "manifest": {"chosen": manifest["chosen"]}
        if stage == "grpo" and "chosen" in manifest
        else {},
        "facts": facts,
    }


def _made(context: Run, stage: Stage) -> dict[str, Path | str]:
    """The files of a result, or their content, by their names in the store."""
    folder = context.folder
    if stage == "evaluate":
        answers = {_name(*part): context.folder.predictions(context.stage, *part)
                   for part in _parts(context)}  # fmt: skip
        return {name: file.read_text(encoding="utf-8") for name, file in answers.items()}
    found: dict[str, Path | str] = {}
    for name, where in (("checkpoint", stage), ("adapter", f"{stage}-adapter")):
        if folder.checkpoint(where).is_dir():
            files = keys.files_of(folder.checkpoint(where))
            found |= {f"{name}/{file.name}": file for file in files}
    tables = sorted((folder.path / "rollouts").glob(f"{stage}-*.parquet"))
    found |= {f"rollouts/{table.name}": table for table in tables}
    lines = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    own = [line for line in lines if json.loads(line)["stage"] == stage]
    return {**found, METRICS: "".join(own)}


def _parts(context: Run) -> list[tuple[str, int]]:
    """What an evaluation asks: splits, each with numbers of shots."""
    return [(split, shots) for split, shots, _ in evaluate.jobs(context)]


def _name(split: str, shots: int) -> str:
    return f"answers/{split}.{shots}shot.jsonl"


# --- what a run gets -----------------------------------------------------------------------------


def _take_training(context: Run, stage: Stage, entry: Entry) -> None:
    """Metrics, rollouts, what the manifest says and, last, the checkpoint: with it the stage has
    ended, should the process be killed here."""
    folder, files = context.folder, entry.files()
    context.rewind(stage, 0)
    for line in files[METRICS].read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        values |= {name: float(text) for name, text in values.pop("not_finite", {}).items()}
        context.log(values.pop("stage"), values.pop("step"), values)
    context.flush()
    for name, table in entry.files("rollouts").items():
        link(table, folder.path / "rollouts" / name)
    folder.update_manifest(**entry.about["manifest"])
    for part, where in (("adapter", f"{stage}-adapter"), ("checkpoint", stage)):
        if found := entry.files(part):
            with checkpoints.write_folder(folder.checkpoint(where)) as partial:
                for name, file in found.items():
                    link(file, partial / name)


def _take_answers(context: Run, stage: Stage, entry: Entry) -> None:
    """Copies: a run adds to its files of answers in place."""
    for split, shots in _parts(context):
        with replacing(context.folder.predictions(context.stage, split, shots)) as file:
            file.write(entry.files()[_name(split, shots)].read_text(encoding="utf-8"))
