"""What a run begins with: its data and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from iad_r1 import data, prompts
from iad_r1.backbones import hub, tiny, twins
from iad_r1.backbones.backbone import Backbone, check_same_pictures
from iad_r1.backbones.packing import check_packing
from iad_r1.backbones.published.build import build_processor, build_random
from iad_r1.boxes import Frame, LocationFormat, Place
from iad_r1.data import images, targets
from iad_r1.data.marked import outline
from iad_r1.errors import DataError, MismatchError
from iad_r1.grid import as_grid
from iad_r1.learn.context import Context
from iad_r1.loops import evaluate, fitting, lengths
from iad_r1.processes import distributed
from iad_r1.report import wording
from iad_r1.settings.config import Config
from iad_r1.store import checkpoints
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import Start, find_start, weights_files
from iad_r1.store.tracking import Tracker
from iad_r1.types import Dataset, Sample


def open_run(
    config: Config, folder: RunFolder, tracker: Tracker | None, start: Start | None
) -> Context:
    """Data first, then weights: what is wrong with a folder of images, or too large for the GPUs,
    is said before any load.

    `start` is where the weights come from; None: those of the backbone.
    """
    device, dtype = distributed.device(config.engine), getattr(torch, config.engine.precision)
    if not config.engine_alone:
        check_packing(config.grpo.packing, device, dtype)
    dataset = open_data(config, folder)
    fitting.check(config, dataset)
    backbone = open_backbone(config, folder, start, lambda: corpus(config, dataset))
    if distributed.is_main():
        note_pictures(folder, backbone)
        if not set(config.tasks()) & {"pretrain", "sft", "grpo"}:
            note_files(folder, weights_files(config.init))
    stage = start.stage if start else "base"
    context = Context(config, folder, tracker, dataset, backbone, stage)
    context.config = lengths.derived(context)
    if not config.engine_alone:
        _ = context.packing  # chosen, or refused, before the first step
    return context


def open_data(config: Config, folder: RunFolder) -> Dataset:
    """The data set of a run, checked and noted in its manifest."""
    if distributed.is_main():
        print("reading or drawing the pictures ...", flush=True)
    dataset = data.for_run(config)
    if distributed.is_main():
        check_same_data(folder, dataset)
        folder.update_manifest(
            data={
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "fingerprints": dict(dataset.fingerprints),
                "counts": dict(dataset.counts),
                "trained_products": sorted(trained_products(config, dataset)),
            }
        )
        if paged := images.several_pages:
            print(
                f"{len(paged)} files hold several pictures, such as {min(paged)}: the first of "
                "each is read",
                flush=True,
            )
        for sentence in leaks(config, dataset.counts):
            print(sentence, flush=True)
    check_products(config, dataset)
    check_references(config, dataset)
    check_places(config, dataset)
    return dataset


def leaks(config: Config, counts: Mapping[str, int]) -> Iterator[str]:
    """What to say of training pictures that are near-duplicates of pictures to test or validate
    with, for each data set that is trained on."""
    for key in config.data.members():
        name = key.rpartition(".")[2]
        found = {k.removeprefix(f"{name}."): n for k, n in counts.items() if k.startswith(name)}
        if not found.get("leaks"):
            continue
        sets = [
            f"{split.removeprefix('leaks.')} {n:,}"
            for split, n in found.items()
            if split.startswith("leaks.")
        ]
        validate = any(text.startswith("validation") for text in sets)
        what = (
            f"{found['leaks']:,} training pictures{f' of {name}' * bool(name)} are near-duplicates "
            f"of test {'or validation ' * validate}pictures ({', '.join(sets)})"
        )
        if found["leaks_dropped"]:
            yield f"{what} and were left out"
        else:
            yield (f"{what}: results on them flatter (data{key}.drop_leaks=true leaves them out)")


def trained_products(config: Config, dataset: Dataset) -> set[str]:
    """The products that the weights of a run have seen in training, as their data sets name them:
    in this run and in those that it goes on from."""
    found = {sample.product for sample in (*dataset.sft, *dataset.rl)}
    if config.init is not None:
        before = find_start(config.init).run.read_json("manifest.json").get("data", {})
        found |= set(before.get("trained_products", []))
    return found


def check_products(config: Config, dataset: Dataset) -> None:
    """Say which test products were trained on, where the name of a split does not say it.

    DataError that names them if the protocol is zero-shot.
    """
    trained = {product.casefold(): product for product in trained_products(config, dataset)}
    known: dict[str, list[str]] = {}
    for split, samples in dataset.test.items():
        names = sorted({s.product for s in samples if s.product.casefold() in trained})
        if names:
            known[split] = names
    said = "; ".join(f"{split}: {', '.join(names)}" for split, names in known.items())
    if known and config.protocol == "zero_shot":
        raise DataError(
            f"protocol=zero_shot, but products of these names were trained on and are tested "
            f"({said}). Test or train on others, or say that results are not zero-shot: "
            "protocol=any."
        )
    if set(known) - set(wording.SPLIT_NAMES) and distributed.is_main():
        print(f"products of these names are trained on and tested: {said}", flush=True)


def check_same_data(folder: RunFolder, dataset: Dataset) -> None:
    """MismatchError if the run began with other pictures than it would go on with."""
    before = folder.read_json("manifest.json").get("data", {}).get("fingerprint")
    if before not in (None, dataset.fingerprint):
        raise MismatchError(
            f"the run in {folder.path} began with other data: fingerprint {before}, now "
            f"{dataset.fingerprint}. Give it the same pictures, labels and masks, or start a new "
            "run (without resume)."
        )


def note_pictures(folder: RunFolder, backbone: Backbone) -> None:
    """Write what makes tensors of pictures to the manifest. MismatchError if the run began with
    something else."""
    before = folder.read_json("manifest.json").get("pictures")
    if before is not None:
        check_same_pictures(
            before, backbone.pictures, f"the steps of {folder.path}", "start a new run"
        )
    folder.update_manifest(pictures=backbone.pictures)


def note_files(folder: RunFolder, files: Sequence[Path]) -> None:
    """Write to the manifest on which weights and good pictures the answers of a run rest.
    MismatchError if it began with other ones: its answers would be of both."""
    now = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    before = folder.read_json("manifest.json").get("rests_on", now)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise MismatchError(
            f"{changed[0]} has changed since the run in {folder.path} began, and its answers would "
            "be those of two judges. Start a new run (without resume)."
        )
    folder.update_manifest(rests_on=now)


def check_references(config: Config, dataset: Dataset) -> None:
    """DataError if some picture has fewer references than the most that will be shown. A split that
    has none at all is said to be tested without."""
    if "evaluate" not in config.tasks():
        return
    asked, short = config.evaluate, []
    for name, samples in [*dataset.validation.items(), *dataset.test.items()]:
        shots = max(evaluate.shots_of(samples, asked))
        short += [(shots, s) for s in samples if len(s.references) < shots]
        if shots < max(asked.shots) and distributed.is_main():
            print(f"{name} has no good pictures to show as references: 0-shot alone", flush=True)
    if short:
        shots, sample = short[0]
        most = min(len(sample.references) for _, sample in short)
        raise DataError(
            f"evaluate.shots asks for {shots} reference pictures, but {len(short)} pictures, such "
            f"as {sample.id}, have fewer. Use at most evaluate.shots=[{most}]."
        )


def check_places(config: Config, dataset: Dataset) -> None:
    """Say of how many defects the place can be learned as numbers. DataError if of none, or if the
    data set has written the answers that PA-SFT learns, in words."""
    tasks, form = config.tasks(), config.location_format
    if form == "words" or not {"sft", "grpo"} & set(tasks):
        return
    learned = [*(dataset.sft if "sft" in tasks else ()), *(dataset.rl if "grpo" in tasks else ())]
    written = [sample for sample in learned if sample.target is not None]
    if written and "sft" in tasks and config.sft.target == "chain_of_thought":
        raise DataError(
            f"location_format={form}, but {len(written):,} training samples, such as "
            f"{written[0].id}, have answers that their data set has written, with places in words. "
            "Use location_format=words, or other data."
        )
    defective = [sample for sample in learned if sample.solution.answer == "Yes"]
    without = sum(sample.mask is None for sample in defective)
    if defective and without == len(defective):
        raise DataError(
            f"location_format={form}, but none of {len(defective):,} defective training pictures "
            "has a mask, so that there is no box to learn. Add masks, or use location_format=words."
        )
    if without and distributed.is_main():
        print(
            f"{without:,} of {len(defective):,} defective training pictures have no mask: no "
            "box is learned from them",
            flush=True,
        )


def open_backbone(
    config: Config, folder: RunFolder, start: Start | None, corpus: Callable[[], Iterator[str]]
) -> Backbone:
    """The weights to begin with.

    An earlier run's weights, published ones, or those that are built here: then `corpus` is what
    the tiny tokenizer learns its words from. Where vLLM answers alone, they stay on disk.
    """
    dtype = getattr(torch, config.engine.precision)
    device = str(distributed.device(config.engine))
    load = partial(Backbone.load, dtype=dtype, device=device, weights=not config.engine_alone)
    if start is not None:
        return load(start.path)
    backbone = config.backbone
    if config.weights.name == "random":
        model = build_random(backbone.name, dtype, device, config.seed)
        return Backbone(model, build_processor(backbone.name))
    if backbone.source == "hub" and config.weights.name == "published":
        found, trusted = hub.fetch(backbone), backbone.trust_remote_code
        return load(found, trust_remote_code=trusted)
    path = folder.checkpoint("base")
    if distributed.is_main() and not path.is_dir():
        build(config, corpus, path)
    distributed.barrier()
    return load(path)


def build(config: Config, corpus: Callable[[], Iterator[str]], path: Path) -> None:
    """Write the tiny backbone, or the tiny twin of a published one, to `path`."""
    backbone = config.backbone
    if backbone.source != "built":
        with checkpoints.write_folder(path) as partial:
            twins.build_twin(backbone.name, partial, config.seed)
        return
    tiny.build(
        path,
        corpus(),
        vocab_size=backbone.vocab_size,
        max_pixels=backbone.max_pixels,
        seed=config.seed,
    )


def corpus(config: Config, dataset: Dataset | None = None) -> Iterator[str]:
    """What the tiny tokenizer learns its words from: the prompts and the SFT targets."""
    format = config.location_format
    for name in {config.sft.prompt, config.grpo.prompt, config.evaluate.prompt}:
        for shots in (0, 1):
            yield prompts.conversation(name, shots=shots, location_format=format).text
    for sample in (dataset or data.for_run(config)).sft:
        place = _place(sample, format)
        yield targets.chain_of_thought(sample, config.seed, as_grid(config.grid), place).text


def _place(sample: Sample, format: LocationFormat) -> Place | None:
    """The place of a sample, in pixels of its picture: there is no model yet to say others."""
    if format == "words" or sample.question.options is not None:
        return None
    size = images.size(sample)
    return Place(format, Frame("shown", size, size), outline(images.open_mask(sample)))
