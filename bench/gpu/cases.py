"""One measurement on a GPU; `kit.py` says which there are and starts them.

    agree twins|BACKBONE        packed = plain, FlashAttention = SDPA: log-probs and gradients
    update BACKBONE PACKING     SC-GRPO's optimiser step, through the product's policy and learner;
                                `whole` behind it: all groups in one forward
    step BACKBONE               the whole step: pictures, sampling, reward, reference, update
    sft BACKBONE                PA-SFT's optimiser step
    gap DEPTH                   sampler and trainer of a deep twin with a peaked head
    vllm BACKBONE               start, synchronise, sleep, wake, sample

Backbones have their true size and random weights. A step is the recipe's: 6 prompts of one picture
of 672 x 672, 4 completions of 512 tokens, one group per forward; of PA-SFT 8 samples. Weights are
full-tuned in bfloat16 with float32 copies. Layers are computed again in the backward pass
(`checkpointing`) only where `stage=plan` says that it does not fit otherwise.

`mfu` counts what the model has to compute (`flop`), not what is computed twice or masked.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import kit
import numpy as np
import sampler_gap
import torch
from PIL import Image
from torch import Tensor

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import Logprobs, check_packing, choose_packing, completion_logprobs
from iad_r1.backbones.published.build import build_processor, build_random
from iad_r1.errors import ConfigError
from iad_r1.learn import optim
from iad_r1.learn.context import Context
from iad_r1.learn.learner import open_learner
from iad_r1.learn.metering import Clock
from iad_r1.loops.collect import Collector
from iad_r1.loops.opening import open_backbone
from iad_r1.loops.policy import Batch, Policy
from iad_r1.loops.sft import _Phase
from iad_r1.objective.advantages import advantages
from iad_r1.planner import memory
from iad_r1.planner.cost import flop
from iad_r1.planner.memory import GIB, Setup, Work
from iad_r1.planner.widths import picture, widths_of
from iad_r1.rollouts import open_sampler
from iad_r1.rollouts.prompting import open_prompter
from iad_r1.rollouts.sampling import Sampling
from iad_r1.settings.config import Config, load
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import (
    Completion,
    Conversation,
    Dataset,
    Group,
    Sample,
    Score,
    Solution,
    StopReason,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDE, TINY_SIDE = 672, 56  # pixels of a picture
TIMED = 3  # steps, after one that is not counted
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, by name
FLOAT32 = {"logprob_mean": 1e-4, "gradient": 1e-3}  # what may lie between two ways in float32
QUESTION = Conversation("{image}Is there any anomaly in the image?")


class Skip(Exception):
    """What a case needs is not here."""


class Report:
    """What a case finds, written as it finds it."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, dict[str, Any]()

    def add(self, **values: Any) -> None:
        self.values |= {name: rounded(value) for name, value in values.items()}
        kit.write(self.path, self.values)


def rounded(value: Any) -> Any:
    """Four digits are enough."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- a run in flight ------------------------------------------------------------------------------


class Here:
    """Whether this is a rehearsal, and where what was carried is."""

    def __init__(self, tiny: bool, carried: Path) -> None:
        self.tiny, self.carried = tiny, carried

    def settings(self, backbone: str, rollout: str = "hf", **changes: Any) -> Config:
        """The composed configuration with some settings changed. ConfigError if there is none, or
        it is of other values than conf/ has, or there is no such setting."""
        path = self.carried / "configs" / f"{backbone}-{rollout}{'-tiny' * self.tiny}.json"
        if not path.is_file():
            raise SystemExit(f"{path} is missing: run `bash bench/gpu/run.sh prepare` first")
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["conf"] != kit.digest():
            raise SystemExit(f"{path} is out of date: run `bash bench/gpu/run.sh prepare` again")
        for key, value in changes.items():
            section, name = key.split("__")
            found["config"][section][name] = value
        return load(json.dumps(found["config"]))

    @contextmanager
    def opened(self, config: Config) -> Iterator[Context]:
        """The configuration's model, and pictures of noise enough for a step."""
        count = max(config.grpo.prompts_per_step, *(p.batch_size for p in config.sft.phases))
        check_packing(config.grpo.packing, DEVICE, getattr(torch, config.engine.precision))
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder.create(Path(folder), "gpu")
            backbone = open_backbone(config, run, None, lambda: iter(()))
            shown = tuple(self.samples(Path(folder), count))
            dataset = Dataset("noise", "noise", shown, shown, {}, {})
            yield Context(config, run, None, dataset, backbone, "base")

    def samples(self, folder: Path, count: int) -> Iterator[Sample]:
        side, rng = TINY_SIDE if self.tiny else SIDE, np.random.default_rng(0)
        for number in range(count):
            path = folder / f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
            truth = Solution("Yes", "top left", "scratch") if number % 2 else Solution("No")
            yield Sample(path.stem, "noise", "train", "plate", path, truth)


# --- measuring ------------------------------------------------------------------------------------


def now() -> float:
    """Seconds, when the GPU has done what it was asked."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def held() -> dict[str, float]:
    """GiB since the last `forget`: at most allocated, at most reserved, and what the GPU holds
    beside what torch reserved (CUDA's context, libraries)."""
    if DEVICE.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "overhead_gib": (total - free - torch.cuda.memory_reserved()) / GIB,
    }


def forget() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def utilisation(operations: float, seconds: float) -> float | None:
    """Share of the GPU's dense bfloat16 peak; None where that is not known."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    peak = next((value for key, value in PEAK.items() if key in name), None)
    return None if peak is None else operations / seconds / peak


class Planned:
    """What `stage=plan` says of a step, and whether its layers are to be computed again."""

    def __init__(
        self,
        context: Context,
        prompt: Prompt,
        completions: int,
        length: int,
        groups: int,
        whole: bool = False,
    ) -> None:
        config = context.config
        self.model = widths_of(context.backbone.model.config.to_dict())
        image = context.model.config.image_token_id
        limits = config.grpo if completions > 1 else config.sft
        side = picture(self.model, *limits.within(prompt.images[0].size), limits.max_pixels)
        shown = int((prompt.inputs["input_ids"] == image).sum())
        words = prompt.inputs["input_ids"].shape[-1] - shown
        side = replace(side, tokens=shown)
        one = Work(1, words, side, 1, completions, length, context.packing)
        self.whole = replace(one, groups=groups)
        self.each, self.forwards = (self.whole, 1) if whole else (one, groups)
        self.setup = Setup(
            precision=config.engine.precision,
            reference=completions > 1 and config.grpo.kl_coef > 0,
            cuda=DEVICE.type == "cuda",
        )
        if DEVICE.type == "cuda":
            room = 0.95 * torch.cuda.mem_get_info()[1]
            self.setup = replace(self.setup, checkpointing=self.peak > room)

    @property
    def peak(self) -> int:
        entropy = self.setup.reference
        return memory.training(
            self.model, self.each, self.setup, forwards=self.forwards, entropy=entropy
        ).peak

    def values(self) -> dict[str, Any]:
        return {
            "checkpointing": self.setup.checkpointing,
            "planned_gib": self.peak / GIB,
            "sequence_tokens": self.whole.tokens,
            "completion_tokens": self.whole.targets,
            "tflop": flop(self.model, self.whole) / 1e12,
        }

    def speed(self, seconds: float) -> dict[str, Any]:
        return {
            "tokens_per_second": self.whole.targets / seconds,
            "mfu": utilisation(flop(self.model, self.whole), seconds),
        }


# --- packed = plain, FlashAttention = SDPA --------------------------------------------------------


def agree(report: Report, here: Here, name: str) -> None:
    """Log-probs and gradients of every packing beside those of plain rows, in both precisions.

    In float32 they have to agree up to its rounding. In bfloat16 they may be, on average, twice as
    far apart as plain rows in bfloat16 are from plain rows in float32.
    """
    chosen = ["qwen25vl_3b", "llava_ov_05b", "llava16_8b", "llava15_7b", "qwen2vl_2b"]
    bad: list[str] = []
    for one in chosen[: 1 if here.tiny else None] if name == "twins" else [name]:
        bad += compare(report, here, one, twin=here.tiny or name == "twins")
        forget()
    if bad:
        raise SystemExit(f"they do not agree: {', '.join(bad)}")


def compare(report: Report, here: Here, name: str, twin: bool) -> list[str]:
    """The ways of one model that do not agree with plain rows."""
    if twin:
        with tempfile.TemporaryDirectory() as folder:
            backbone = Backbone.load(twins.build_twin(name, Path(folder) / name))
        backbone.model.to(DEVICE)
    else:
        model = build_random(name, torch.float32, DEVICE)
        backbone = Backbone(model, build_processor(name))
    side = TINY_SIDE if twin else SIDE // 2  # six plain rows in float32 have to fit
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 255, (side, side + 28 * n, 3), dtype=np.uint8) for n in range(2)]
    inputs = [backbone.encode(QUESTION, [Image.fromarray(pixels)]).inputs for pixels in shown]
    words, longest = plain_words(backbone), 12 if twin else 128
    lengths = [[longest, 3, longest // 2], [5, longest - 1, 1]]
    tokens = [[rng.choice(words, length).tolist() for length in group] for group in lengths]
    model, bad, exact = backbone.model.eval(), list[str](), None
    for kind in (torch.float32, torch.bfloat16):
        model.to(kind)
        label = f"{name} {str(kind).removeprefix('torch.')}"
        plain = outcome(model, inputs, tokens, "off")
        limit = FLOAT32
        if exact is not None:
            rounding = apart(plain, exact)
            limit = {key: 2 * rounding[key] for key in FLOAT32}
            report.add(**{f"{label} off beside float32": rounding})
        exact = plain if exact is None else exact
        for packing in ("group", "group_flash"):
            try:
                check_packing(packing, DEVICE, kind)
                _, through = choose_packing(packing, model)
            except ConfigError as error:
                report.add(**{f"{label} {packing}": f"not here: {error}"})
                continue
            far = apart(outcome(model, inputs, tokens, packing), plain)
            fine = all(far[key] <= value for key, value in limit.items())
            report.add(**{f"{label} {packing}": {**far, "agrees": fine, "through": through}})
            bad += [] if fine else [f"{label} {packing}"]
    return bad


def outcome(model: Any, inputs: Any, tokens: Any, packing: Any) -> tuple[Tensor, list[Tensor]]:
    """Log-probs, and the gradient of their weighted sum."""
    model.zero_grad(set_to_none=True)
    found = completion_logprobs(model, inputs, tokens, packing=packing, entropy=False)
    weights = torch.linspace(0.5, 1.5, found.logprob.shape[1], device=found.logprob.device)
    (found.logprob * weights * found.mask).sum().backward()
    kept = [w.grad.float() for w in model.parameters() if w.grad is not None]
    model.zero_grad(set_to_none=True)
    return found.logprob.detach()[found.mask], kept


def apart(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> dict[str, float]:
    """Nats between log-probs, and the relative distance of gradients."""
    far = (one[0] - other[0]).abs()
    distance = sum((a - b).square().sum().item() for a, b in zip(one[1], other[1], strict=True))
    size = sum(b.square().sum().item() for b in other[1])
    found = far.mean().item(), far.max().item(), (distance / size) ** 0.5
    return dict(zip(("logprob_mean", "logprob_max", "gradient"), map(rounded, found), strict=True))


def plain_words(backbone: Backbone) -> list[int]:
    """Tokens that mean nothing special."""
    special = {*backbone.tokenizer.all_special_ids, *backbone.placeholders, *backbone.ends}
    special |= set(backbone.tokenizer.added_tokens_decoder)
    return [token for token in range(min(30_000, len(backbone.tokenizer))) if token not in special]


# --- training steps -------------------------------------------------------------------------------


def update(report: Report, here: Here, name: str, packing: str, part: str = "group") -> None:
    """The optimiser step of SC-GRPO on given completions, and the reference's pass before it."""
    budget = {"group": 1, "whole": None}[part]
    config = here.settings(name, grpo__packing=packing, grpo__token_budget=budget)
    with here.opened(config) as context:
        prompter = open_prompter(config, context.backbone, "grpo")
        prompts = [prompter.encode(s) for s in context.dataset.rl[: config.grpo.prompts_per_step]]
        size, length = config.grpo.group_size, config.rollout.max_tokens
        planned = Planned(context, prompts[0], size, length, len(prompts), whole=budget is None)
        report.add(packing=context.packing, **planned.values())
        with optim.gradient_checkpointing(context.model, planned.setup.checkpointing):
            policy = Policy(context, steps=100)
            batch = given(policy, context, prompts, size, length)
            referred, learned = [], []
            for step in range(1 + TIMED):
                if step == 1:
                    forget()
                with torch.no_grad():
                    batch = replace(batch, sampler=policy.all_logprobs(policy.model, batch))
                start = now()
                known = policy.with_reference(batch)
                half = now()
                policy.learn(known, step)
                referred.append(half - start)
                learned.append(now() - half)
    seconds = median(learned[1:])
    report.add(seconds_update=seconds, seconds_reference=median(referred[1:]))
    report.add(**planned.speed(seconds), **held())


def given(policy: Policy, context: Context, prompts: list[Prompt], size: int, length: int) -> Batch:
    """Completions of random words with random rewards."""
    rng, words = np.random.default_rng(0), plain_words(context.backbone)
    groups = []
    for sample in context.dataset.rl[: len(prompts)]:
        drawn = [tuple(rng.choice(words, length).tolist()) for _ in range(size)]
        said = [Completion("", one, (0.0,) * length, StopReason.LENGTH) for one in drawn]
        groups.append(Group(sample, said, [Score(float(rng.random())) for _ in said]))
    with torch.no_grad():
        return policy.batch(prompts, groups, advantages([group.rewards() for group in groups]))


def step(report: Report, here: Here, name: str) -> None:
    """One pass of SC-GRPO's loop, as `loops/grpo.py` makes it, sampled by transformers. All
    completions are decoded at once (`rollout.batch_size`)."""
    asked = here.settings(name)
    rows = asked.grpo.prompts_per_step * asked.grpo.group_size
    config = here.settings(name, rollout__batch_size=rows)
    with here.opened(config) as context:
        samples = context.dataset.rl[: config.grpo.prompts_per_step]
        encoded = open_prompter(config, context.backbone, "grpo").encode(samples[0])
        size, length = config.grpo.group_size, config.rollout.max_tokens
        planned = Planned(context, encoded, size, length, len(samples))
        report.add(packing=context.packing, **planned.values())
        with optim.gradient_checkpointing(context.model, planned.setup.checkpointing):
            policy = Policy(context, steps=100)
            collector = Collector(context, policy.learner.whole)
            with collector.prompts:
                collector.sampler.generate([encoded], Sampling(size, 4, 1.0), [(0, 0)])  # kernels
                forget()
                clock = Clock()
                collector.synchronise(0, clock)
                drawn = collector.collect(samples, 0, clock)
                gains = advantages(drawn.rewards_PG(), config.grpo.advantage)
                batch = policy.with_reference(policy.batch(drawn.prompts, drawn.groups, gains))
                now()
                clock.lap("reference")
                learned = policy.learn(policy.with_old(batch), 0)
                now()
                clock.lap("update")
            collector.close()
    whole = clock.scalars()
    gaps = {key: value for key, value in learned.items() if "gap" in key or "mismatch" in key}
    report.add(**whole, tokens_per_second=drawn.tokens() / whole["seconds_step"], **gaps)
    report.add(**held())


def sft(report: Report, here: Here, name: str) -> None:
    """The optimiser step of PA-SFT."""
    config = here.settings(name)
    with here.opened(config) as context:
        phase = _Phase(context, config.sft.phases[0], 0)
        batch = context.dataset.sft[: phase.phase.batch_size]
        answers = [len(phase.target(sample, 0)[0].tokens) for sample in batch]
        prompt = phase.prompter.encode(batch[0])
        planned = Planned(context, prompt, 1, round(sum(answers) / len(answers)), len(batch))
        report.add(packing=context.packing, **planned.values())
        optim.train_only(context.model, vision=True, parts=config.tuning.train)
        with optim.gradient_checkpointing(context.model, planned.setup.checkpointing):
            phase.learner = learner = open_learner(config.engine, context.model, config.sft, 100)
            context.model.train()
            seconds = []
            with phase.prompts:
                for number in range(1 + TIMED):
                    if number == 1:
                        forget()
                    start = now()
                    phase.step(learner, batch, number, batch)
                    seconds.append(now() - start)
    report.add(seconds_update=median(seconds[1:]), **planned.speed(median(seconds[1:])))
    report.add(**held())


# --- samplers -------------------------------------------------------------------------------------


def gap(report: Report, here: Here, depth: str) -> None:
    """How far rounding puts transformers' sampler from the trainer (bench/sampler_gap.py)."""
    layers, steps = (4, 1) if here.tiny else (int(depth), 2)
    for kind in (torch.bfloat16, torch.float32):
        with tempfile.TemporaryDirectory() as folder:
            backbone = sampler_gap.peaked_twin(Path(folder), layers, kind, device=DEVICE)
        asked = sampler_gap.prompts(backbone, sampler_gap.PROMPTS)
        sampling = Sampling(sampler_gap.GROUP, 8 if here.tiny else 256, 1.0)
        found = []
        for number in range(steps):
            groups = sampler_gap.draw(backbone, asked, sampling, number)
            found.append(between(groups, sampler_gap.trainer(backbone, asked, groups)))
        report.add(**{str(kind).removeprefix("torch."): spread(torch.cat(found))})


def between(groups: Sequence[Sequence[Completion]], said: Logprobs) -> Tensor:
    """|sampler - trainer| of every token, nats."""
    drawn = torch.tensor([p for group in groups for one in group for p in one.logprobs])
    return (drawn - said.logprob[said.mask].cpu()).abs()


def spread(gaps: Tensor) -> dict[str, float]:
    """Nats per token."""
    high = {f"q{q}": rounded(gaps.quantile(q / 100).item()) for q in (95, 99)}
    mean, most = rounded(gaps.mean().item()), rounded(gaps.max().item())
    return {"tokens": len(gaps), "mean": mean, **high, "max": most}


def vllm(report: Report, here: Here, name: str) -> None:
    """vLLM in the training process: how long it takes to start, to be given weights, to sleep and
    to wake; a step's completions; and how far it is from the trainer."""
    if find_spec("vllm") is None:
        raise Skip("vllm is not installed here, and too large to carry")
    config = here.settings(name, "vllm")
    with here.opened(config) as context:
        prompter = open_prompter(config, context.backbone, "grpo")
        prompts = [prompter.encode(s) for s in context.dataset.rl[: config.grpo.prompts_per_step]]
        longest = max(prompt.inputs["input_ids"].shape[-1] for prompt in prompts)
        room = {"max_model_len": longest + config.rollout.max_tokens}
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update=room)})
        sampler: Any = None

        def began() -> None:
            nonlocal sampler
            sampler = open_sampler(config, context.backbone, config.rollout.batch_size)

        report.add(seconds_start=timed(began))
        report.add(seconds_first_sync=timed(sampler.sync))
        report.add(seconds_sync=median(timed(sampler.sync) for _ in range(TIMED)))
        sampling = Sampling(config.grpo.group_size, config.rollout.max_tokens, 1.0)
        seeds = [(0, number) for number in range(len(prompts))]
        sampler.generate(prompts[:1], Sampling(config.grpo.group_size, 4, 1.0), seeds[:1])
        groups: list[list[Completion]] = []
        took = timed(lambda: groups.extend(sampler.generate(prompts, sampling, seeds)))
        tokens = [[completion.tokens for completion in group] for group in groups]
        count = sum(len(row) for group in tokens for row in group)
        report.add(seconds_sample=took, tokens_per_second=count / took)
        if DEVICE.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
            report.add(seconds_sleep=timed(sampler.close))
            report.add(freed_gib=(torch.cuda.mem_get_info()[0] - free) / GIB)
            report.add(seconds_wake=timed(sampler.sync))
            sampler.close()
        with torch.no_grad():
            said = completion_logprobs(
                context.model, [prompt.inputs for prompt in prompts], tokens,
                suppressed=context.backbone.placeholders, token_budget=1, entropy=False,
            )  # fmt: skip
        report.add(gap=spread(between(groups, said)))
        sampler.stop()


def timed(call: Callable[[], Any]) -> float:
    start = now()
    call()
    return now() - start


# --- one case -------------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., None]] = {
    "agree": agree, "update": update, "step": step, "sft": sft, "gap": gap, "vllm": vllm,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--into", type=Path, required=True, help="the numbers")
    parser.add_argument("--carried", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    report, here = Report(options.into), Here(options.tiny, options.carried)
    if not here.tiny and DEVICE.type != "cuda":
        report.add(status="failed", reason="true sizes need a GPU; --tiny rehearses anywhere")
        return 1
    try:
        KINDS[options.kind](report, here, *options.words)
    except (Skip, ConfigError) as error:
        report.add(status="skipped", reason=str(error))
    except torch.OutOfMemoryError as error:
        report.add(status="out_of_memory", reason=str(error).splitlines()[0], **held())
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        report.add(status="failed", reason=f"{type(error).__name__}: {error}"[:500])
        return 1
    else:
        report.add(status="ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
