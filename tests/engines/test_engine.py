"""The colocated engine says of its tokens what the trainer says: before and after training."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from vllm_cases import gap, move, picture, prompts, seeds

from iad_r1.backbones import twins
from iad_r1.backbones.backbone import Backbone
from iad_r1.errors import DataError, MismatchError, TrainingError
from iad_r1.learn.guards import blanked
from iad_r1.rollouts.sampling import Sampling
from iad_r1.types import Conversation, StopReason

pytestmark = pytest.mark.vllm
FAMILIES = [
    "qwen2_vl", "qwen2_5_vl", "llava", "llava_next", "llava_onevision",
    "internvl",  # for evaluation only; its weights are synchronised all the same
]  # fmt: skip
LIMIT = 1e-4  # nats, float32


def test_the_families_here_are_twins():
    assert set(FAMILIES) <= set(twins.TWINS)


@pytest.fixture(scope="module", params=FAMILIES)
def fresh(request: pytest.FixtureRequest, twin: Any, engines: Any) -> Any:
    """A twin and its engine, not yet synchronised."""
    backbone = twin(request.param)
    return backbone, engines(backbone)


def adapt(backbone: Backbone, parts: tuple[str, ...]) -> None:
    """Put LoRA adapters on the linear layers whose names hold one of `parts`."""
    names = [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear)
        and "lm_head" not in name
        and any(part in name for part in parts)
    ]
    assert names
    backbone.model = get_peft_model(
        backbone.model, LoraConfig(r=4, lora_alpha=16, target_modules=names)
    )


TUNINGS = {
    "full": None,
    "lora on language": ("language_model",),
    "lora on language and vision": ("language_model", "visual", "vision_tower", "projector"),
}


@pytest.mark.parametrize("tuning", list(TUNINGS))
def test_synced_weights_are_the_trainers_before_and_after_every_update(fresh, tuning):
    backbone, engine = fresh
    plain, parts = backbone.model, TUNINGS[tuning]
    if parts is not None:
        adapt(backbone, parts)
    asked = prompts(backbone)
    try:
        engine.sync()
        at_start = gap(backbone, asked, engine.generate(asked, Sampling(4, 12, 1.0), seeds(asked)))
        move(backbone, 1)
        stale = gap(backbone, asked, engine.generate(asked, Sampling(4, 12, 1.0), seeds(asked)))
        engine.sync()
        cool = engine.generate(asked, Sampling(4, 12, 0.7), seeds(asked))
        move(backbone, 2)
        engine.sync()
        again = engine.generate(asked, Sampling(4, 12, 1.0), seeds(asked))
        assert at_start < LIMIT
        assert stale > 0.1  # the tokens are the old weights', which is what has to be found out
        assert gap(backbone, asked, again) < LIMIT
        move(backbone, 2, by=-0.05)  # back to the weights that `cool` was drawn from
        assert gap(backbone, asked, cool, 0.7) < LIMIT
    finally:
        if parts is not None:
            backbone.model = backbone.model.unload()
        assert backbone.model is plain


def test_processor_of_engine_and_trainer_make_the_same_ids_and_pictures(fresh):
    from iad_r1.rollouts.parity import compare_inputs

    backbone, engine = fresh
    for prompt in prompts(backbone):
        ids, pictures = engine.processed(prompt)
        assert ids == prompt.inputs["input_ids"][0].tolist()
        assert len(pictures) == len(prompt.images)
        assert "pixel_values" in prompt.inputs
        assert all("pixel_values" in theirs for theirs in pictures)
        compare_inputs(engine, prompt)


def test_with_a_blank_picture_the_engine_says_something_else(fresh):
    backbone, engine = fresh
    engine.sync()
    words, own = Conversation("{image}Are there any defects?"), backbone.fit(picture(0))

    def said(shown: Image.Image) -> list[tuple[int, float]]:
        (group,) = engine.generate([backbone.encode(words, [shown])], Sampling(1, 4, 1.0), [(0,)])
        return list(zip(group[0].tokens, group[0].logprobs, strict=True))

    seen, again, unseen = said(own), said(own), said(blanked(own))
    assert [token for token, _ in seen] == [token for token, _ in again]
    (first, likely), (other, less) = seen[0], unseen[0]
    assert first != other or abs(likely - less) > 10 * LIMIT


def test_an_image_placeholder_is_never_drawn(fresh):
    backbone, engine = fresh
    favoured = list(backbone.placeholders)
    head = backbone.model.get_output_embeddings().weight
    saved = head.detach().clone()
    asked = prompts(backbone)
    with torch.no_grad():  # every placeholder scores what the likeliest token does, times five
        head[favoured] = 5 * head.abs().max() * torch.sign(head.mean(0))
    try:
        engine.sync()
        groups = engine.generate(asked, Sampling(8, 12, 1.0), seeds(asked))
    finally:
        with torch.no_grad():
            head.copy_(saved)
        engine.sync()
    drawn = {token for group in groups for completion in group for token in completion.tokens}
    assert drawn and drawn.isdisjoint(favoured)


# ------------------------------------------------------------------------ one family from here


@pytest.fixture(scope="module")
def started(twin: Any, engines: Any) -> Any:
    """A twin, its engine, not yet synchronised, and whether its start left the random numbers and
    the setting of threads as they were."""
    backbone = twin("qwen2_5_vl")
    torch.manual_seed(3)
    expected, threads = torch.rand(1), torch.set_num_threads
    torch.manual_seed(3)
    engine = engines(backbone)
    return backbone, engine, torch.rand(1) == expected, torch.set_num_threads is threads


def test_starting_an_engine_leaves_random_numbers_and_threads_as_they_were(started):
    *_, same_numbers, same_threads = started
    assert same_numbers
    assert same_threads


def test_an_engine_without_weights_answers_nothing(started):
    """Here, before `ready` gives it weights."""
    backbone, engine, *_ = started
    with pytest.raises(MismatchError, match="before it was given weights"):
        engine.generate(prompts(backbone), Sampling(1, 4, 1.0), [(0,), (1,)])


@pytest.fixture(scope="module")
def ready(started: Any) -> Any:
    """The same twin and its engine, synchronised."""
    backbone, engine, *_ = started
    engine.sync()
    return backbone, engine


def test_the_same_seed_draws_the_same_completions_and_every_sample_has_its_own(ready):
    backbone, engine = ready
    asked = prompts(backbone)
    first = engine.generate(asked, Sampling(4, 10, 1.0), seeds(asked, 5))
    assert engine.generate(asked, Sampling(4, 10, 1.0), seeds(asked, 5)) == first
    assert engine.generate(asked, Sampling(4, 10, 1.0), seeds(asked, 6)) != first
    assert len({completion.tokens for completion in first[0]}) == 4


def test_what_is_drawn_for_a_prompt_does_not_depend_on_the_other_prompts(ready):
    backbone, engine = ready
    asked = prompts(backbone)
    sampling, numbers = Sampling(3, 10, 1.0), seeds(asked, 5)
    together = engine.generate(asked, sampling, numbers)
    alone = [engine.generate([p], sampling, [n])[0] for p, n in zip(asked, numbers, strict=True)]
    assert [[c.tokens for c in g] for g in together] == [[c.tokens for c in g] for g in alone]


def test_a_completion_ends_with_an_end_token_or_at_the_limit(ready):
    backbone, engine = ready
    asked = prompts(backbone)
    groups = engine.generate(asked, Sampling(8, 40, 1.5), seeds(asked, 1))
    flat = [completion for group in groups for completion in group]
    for completion in flat:
        ended = completion.tokens[-1] in backbone.ends
        assert ended == (completion.stop is StopReason.STOP)
        assert not set(completion.tokens[:-1]) & set(backbone.ends)
        assert ended or len(completion.tokens) == 40
        assert len(completion.logprobs) == len(completion.tokens)
    assert {completion.stop for completion in flat} == {StopReason.STOP, StopReason.LENGTH}


def test_greedy_is_what_the_transformers_engine_says(ready):
    from iad_r1.rollouts.hf import HfSampler

    backbone, engine = ready
    asked = prompts(backbone)
    ours = HfSampler(backbone, 8).generate(asked, Sampling(1, 12, 0.0), seeds(asked))
    theirs = engine.generate(asked, Sampling(1, 12, 0.0), seeds(asked))
    assert [g[0].tokens for g in ours] == [g[0].tokens for g in theirs]


def test_the_prompt_of_a_group_is_computed_once(ready):
    """Samples of a group after the first find its prompt in the cache, up to a whole block."""
    from vllm_cases import LONG

    backbone, engine = ready
    asked = prompts(backbone, LONG)[:1]
    engine.reset_prefix_cache()
    outputs: list[Any] = []
    step = engine.llm.llm_engine.engine_core.get_output

    def seen() -> Any:
        found = step()
        outputs.extend(found.outputs)
        return found

    engine.llm.llm_engine.engine_core.get_output = seen
    try:
        engine.generate(asked, Sampling(4, 2, 1.0), seeds(asked))
    finally:
        engine.llm.llm_engine.engine_core.get_output = step
    length = asked[0].inputs["input_ids"].shape[1]
    cached = sorted(
        output.prefill_stats.num_cached_tokens for output in outputs if output.prefill_stats
    )
    assert length > 128
    assert len(cached) == 4 and cached[1] >= 128


def test_prompts_that_do_not_fit_into_one_step_together_are_sampled_all_the_same(ready):
    """vLLM would compute the last of them in pieces, which it cannot do with seeds on a CPU."""
    from vllm_cases import LONG

    backbone, engine = ready
    engine.reset_prefix_cache()
    asked = [prompts(backbone, f"{number} {LONG}")[0] for number in range(40)]
    room = engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert sum(prompt.inputs["input_ids"].shape[1] for prompt in asked[:16]) > room
    groups = engine.generate(asked, Sampling(1, 2, 1.0), seeds(asked))
    assert gap(backbone, asked, groups) < LIMIT


def test_results_are_streamed_as_they_finish_and_prompts_taken_as_there_is_room(ready):
    backbone, engine = ready
    one = prompts(backbone)[0]
    taken: list[int] = []

    def asked(count: int):
        for number in range(count):
            taken.append(number)
            yield one, (0, number)

    count = 4 * 16 + 20  # more than the scheduler is ever given at once
    at_first: list[int] = []
    found: dict[int, Any] = {}
    for index, group in engine.stream(asked(count), Sampling(1, 6, 1.0)):
        found[index] = group
        at_first.append(len(taken))
    assert sorted(found) == list(range(count))
    assert at_first[0] < count


def test_a_prompt_that_does_not_fit_is_refused_by_name(ready):
    backbone, engine = ready
    question = Conversation("{image}" + "Is there a defect? " * 200)
    asked = backbone.encode(question, [picture(0)], "bottle/broken/007")
    with pytest.raises(DataError, match=r"bottle/broken/007: \d+ prompt tokens"):
        engine.generate([asked], Sampling(1, 8, 1.0), [(0,)])
    fitting = prompts(backbone)  # and the engine goes on
    assert len(engine.generate(fitting, Sampling(1, 4, 1.0), seeds(fitting))) == 2


def test_in_bfloat16_the_output_layer_answers_in_float32(twin, engines):
    """As the trainer's does; vLLM would say so in a warning and go on if it could not."""
    backbone = twin("qwen2_5_vl", torch.bfloat16)
    engine = engines(backbone)
    engine.sync()
    model = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    head = backbone.model.get_output_embeddings().weight
    states = torch.randn(5, head.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    found, exact = model.compute_logits(states), states.double() @ head.double().t()
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 < (states @ head.t() - exact).abs().max()


# --------------------------------------------------------------------------- engines that fail


def test_an_engine_that_finds_no_memory_says_so_in_its_own_words(twin, engines):
    with pytest.raises(TrainingError, match=r"did not start: .*No available memory for the cache"):
        engines(twin("qwen2_5_vl"), kv_cache_gib=1e-4)


STUCK = """
import ctypes
from iad_r1.rollouts.colocate import sampler as vllm_engine

vllm_engine.GRACE = 0.2
lock = ctypes.create_string_buffer(64)
pthread = ctypes.CDLL(None)
with vllm_engine.alarm(0.2):
    pthread.pthread_mutex_lock(lock)
    pthread.pthread_mutex_lock(lock)  # never comes back, and no signal interrupts it
"""


def test_an_engine_that_hangs_where_no_error_can_be_raised_ends_the_process(repository):
    """As a GPU that does not answer would: Python handles an alarm only between its own steps."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK], cwd=repository, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "error: the sampler did not answer for 0.2 s. Checkpoints are intact" in done.stderr
