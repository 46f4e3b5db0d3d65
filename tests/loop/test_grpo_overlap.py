"""A batch is drawn while the batch before it is learned: by which weights, and what stops both.

A model of its own stands for the server, behind the requests and threads of the real sampler.
"""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_run import logged, same, stopped, weights

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.backbones.packing import completion_logprobs
from iad_r1.command import compose
from iad_r1.errors import MismatchError, Terminated, TrainingError
from iad_r1.learn.context import Context
from iad_r1.learn.metering import Clock
from iad_r1.loops import collect, grpo, overlap
from iad_r1.loops.collect import Collected, Collector
from iad_r1.loops.policy import Policy
from iad_r1.rollouts.colocate.weights import hub_weights
from iad_r1.rollouts.hf import HfSampler
from iad_r1.rollouts.sampling import Sampling
from iad_r1.rollouts.server import sampler as vllm_server
from iad_r1.rollouts.server.client import Stopped
from iad_r1.rollouts.server.sampler import Served, ServerSampler
from iad_r1.types import Completion, Group, Score

OVERLAP = [
    "rollout=vllm_server",
    "rollout.max_num_seqs=4",
    "rollout.parity.probes=2",
    "rollout.parity.tokens=4",
    "grpo.overlap=1",
    "grpo.importance.level=token",
    "grpo.steps=3",
    "grpo.prompts_per_step=3",
    "grpo.group_size=2",
    "rollout.max_tokens=8",
    "grpo.learning_rate=1e-4",
    "grpo.degenerate_groups=keep",
]
PATIENCE = 60.0  # seconds until a thread that waits in vain gives up, and its test fails


class Server(ServerSampler):
    """Has the weights it was sent, in a model of its own."""

    def __init__(self, backbone: Backbone, settings: Any) -> None:
        super().__init__(backbone, settings, Served("a server", "python run.py stage=serve"))
        self.theirs = Backbone(copy.deepcopy(backbone.model).eval(), backbone.processor)

    def _try_to_sync(self) -> Any:
        with torch.no_grad():
            held = hub_weights(self.theirs.model)
            for (_, sent), (_, mine) in zip(self._weights(), held, strict=True):
                mine.copy_(sent)
        return "", {}

    def _request(self, prompt: Prompt, sampling: Any, seed: Any) -> Any:
        return prompt, sampling, seed

    def _answer(self, server: Any, asked: Any, stop: threading.Event) -> Any:
        prompt, sampling, seed = asked
        (group,) = HfSampler(self.theirs, 8).generate([prompt], sampling, [seed])
        said = [{"index": index, "said": one} for index, one in enumerate(group)]
        return {"prompt_token_ids": self.processed(prompt)[0], "choices": said}

    def _completion(self, prompt: Prompt, choice: Any) -> Completion:
        return choice["said"]

    def _reset(self, path: str) -> None:
        """Nothing is kept."""

    def weight_sums(self) -> dict[str, float]:
        return {}

    def processed(self, prompt: Prompt) -> Any:
        return prompt.inputs["input_ids"][0].tolist(), []


def of_batch(asked: Any, step: int | None = None) -> bool:
    """Whether this was asked of a batch drawn ahead (of `step`), and not of a probe."""
    _, _, seed = asked
    return len(seed) == 3 and (seed[1] > 0 if step is None else seed[1] == step)


def within_patience(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not (found := happened()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def by_tokens(self, samples, groups):
    return [[Score(float(sum(c.tokens) % 7), {"answer": 0.0}) for c in group] for group in groups]


@pytest.fixture(autouse=True)
def _served(monkeypatch):
    monkeypatch.setattr(collect, "open_sampler", lambda config, b, _: Server(b, config.rollout))
    monkeypatch.setattr(Collector, "score", by_tokens)


@pytest.fixture
def taken(monkeypatch) -> list[Collected]:
    """The batches that were learned."""
    found: list[Collected] = []
    take = overlap.Overlap.take

    def noted(self, step, clock):
        found.append(take(self, step, clock))
        return found[-1]

    monkeypatch.setattr(overlap.Overlap, "take", noted)
    return found


# ---------------------------------------------------------------------------- which weights drew it


def test_a_batch_is_drawn_beside_the_one_before_it_by_the_weights_it_is_tagged_with(
    make_context, taken, monkeypatch
):
    context, held = make_context(*OVERLAP), list[dict[str, torch.Tensor]]()
    synchronise, answer, learn = Collector.synchronise, Server._answer, Policy.learn
    drawing = [threading.Event() for _ in range(3)]

    def noted(self, step, clock):
        held.append({k: v.clone() for k, v in context.model.state_dict().items()})
        synchronise(self, step, clock)

    def told(self, server, asked, stop):
        if of_batch(asked):
            drawing[asked[2][1]].set()
        return answer(self, server, asked, stop)

    def waits(self, batch, step, check):
        assert step == 2 or drawing[step + 1].wait(PATIENCE), "nothing is drawn meanwhile"
        return learn(self, batch, step, check)

    monkeypatch.setattr(Collector, "synchronise", noted)
    monkeypatch.setattr(Server, "_answer", told)
    monkeypatch.setattr(Policy, "learn", waits)
    lines = logged(context)
    assert [line["staleness"] for line in lines] == [0, 1, 1]
    assert [{g.version for g in batch.groups} for batch in taken] == [{0}, {0}, {1}]
    assert max(line["sampler_gap"] for line in lines) < 1e-4  # both with the same weights
    for step, batch in enumerate(taken):
        apart = {}
        for version, state in enumerate(held):
            context.model.load_state_dict(state)
            apart[version] = gap(context, batch)
        if step:  # what is logged of it is the way from those weights to the ones that learn
            assert lines[step]["sampler_gap_max"] == pytest.approx(apart[step], rel=1e-2)
            assert lines[step]["importance_mean"] != pytest.approx(1, abs=1e-4)
        assert apart.pop(batch.groups[0].version) < 1e-4
        assert min(apart.values()) > 1e-3, step


def gap(context: Context, batch: Collected) -> float:
    """Largest difference between what the sampler said and what the model says now."""
    completions = [group.completions for group in batch.groups]
    with torch.no_grad():
        said = completion_logprobs(
            context.model.eval(),
            [prompt.inputs for prompt in batch.prompts],
            [[c.tokens for c in group] for group in completions],
            suppressed=context.backbone.placeholders,
        ).logprob
    flat = [c for group in completions for c in group]
    return max(
        (torch.tensor(c.logprobs) - said[row, : len(c.tokens)]).abs().max().item()
        for row, c in enumerate(flat)
    )


# ---------------------------------------------------------- sampler and trainer still agree


def test_another_picture_of_one_sample_is_found_although_the_weights_differ(
    make_context, monkeypatch
):
    """No fixed probe shows it: it is the batch's own prompts that are compared."""
    answer = Server._answer

    def blind(self, server, asked, stop):
        prompt, sampling, seed = asked
        if prompt.name == wrong:
            pixels = torch.zeros_like(prompt.inputs["pixel_values"])
            prompt = Prompt(**{**vars(prompt), "inputs": {**prompt.inputs, "pixel_values": pixels}})
        return answer(self, server, (prompt, sampling, seed), stop)

    context = make_context(*OVERLAP, "grpo.learning_rate=1e-6")
    batches = grpo.optim.batches(context.dataset.rl, 3, 3, context.config.seed)
    probes = {sample.id for sample in context.dataset.rl[:2]}
    step, wrong = next(
        (step, sample.id)
        for step, batch in enumerate(batches)
        for sample in batch[:2]
        if sample.id not in probes
    )
    monkeypatch.setattr(Server, "_answer", blind)
    with pytest.raises(MismatchError, match=f"grpo step {step}: sampler and trainer disagree"):
        logged(context)


def test_a_step_further_than_the_correction_reaches_ends_the_run(make_context):
    policy = Policy(make_context(*OVERLAP, "grpo.kl_coef=0"), steps=1)
    own, counted = torch.full((2, 3), -1.0), torch.ones(2, 3, dtype=torch.bool)
    counted[1, 1:] = False

    def check(apart: float) -> dict[str, float]:
        batch: Any = SimpleNamespace(sampler=own + apart, counted=counted)
        return policy.check_sampler(batch, own, "grpo step 1")

    found = check(-0.6)  # the largest mean that cap=2 corrects is log 2
    assert found["sampler_gap_mean"] == pytest.approx(0.6)
    assert "sampler_gap" not in found  # of the same weights: the collector's
    for apart in (-0.7, 0.7, math.nan):
        with pytest.raises(MismatchError, match=r"^grpo step 1: .*overlap=0"):
            check(apart)


# ------------------------------------------------------------------------ a fault in one half


def test_a_fault_of_the_draw_ends_the_learning_beside_it(make_context, monkeypatch):
    """At the next forward, with the draw's error; the step's own completions are not blamed."""
    learning, passes, checks = threading.Event(), list[int](), list[Callable[[], None]]()
    answer, learn, loss = Server._answer, Policy.learn, Policy.loss

    def gone(self, server, asked, stop):
        if of_batch(asked, 2):
            assert learning.wait(PATIENCE)
            raise TrainingError("the rollout server http://gpu2:8000 did not answer")
        return answer(self, server, asked, stop)

    def noted(self, batch, step, check):
        passes.append(0)
        checks.append(check)
        return learn(self, batch, step, check)

    def slow(self, *given):
        passes[-1] += 1
        if len(passes) == 2 and passes[-1] == 2:
            learning.set()
            assert within_patience(lambda: has_failed(checks[-1]))
        return loss(self, *given)

    monkeypatch.setattr(Server, "_answer", gone)
    monkeypatch.setattr(Policy, "learn", noted)
    monkeypatch.setattr(Policy, "loss", slow)
    context = make_context(*OVERLAP, "grpo.token_budget=1")
    message = r"^the rollout server http://gpu2:8000 did not answer$"
    with pytest.raises(TrainingError, match=message):
        logged(context)
    assert passes == [3, 2]
    assert not (context.folder.path / "failed").exists()


class Desk(ServerSampler):
    """Without a model: `answer` is what becomes of a request."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        backbone: Any = SimpleNamespace(model=torch.nn.Linear(1, 1))
        settings: Any = compose.compose(OVERLAP).rollout
        super().__init__(backbone, settings, Served("", ""))
        self.answer, self.sums = answer, {}

    def _answer(self, server: Any, asked: Any, stop: threading.Event) -> Any:
        return self.answer(stop)

    def _request(self, prompt: Any, sampling: Any, seed: Any) -> Any:
        return prompt

    def _next(self, desk: Any, waiting: dict[int, Any]) -> Any:
        index, said = desk.answer()
        del waiting[index]
        return index, said


class Half:
    """A collector whose batches are nothing but a draw through `sampler`."""

    def __init__(self, sampler: Desk) -> None:
        self.sampler, self.version = sampler, 0
        self.close, self.let_weights_move = sampler.close, sampler.let_weights_move

    def ask(self, samples: Any, *_: Any) -> Any:
        return self.sampler.generate(list(samples), Sampling(2, 4, 1.0), [()] * len(samples))

    def collect(self, samples: Any, *_: Any, asked: Any = None) -> Any:
        return Collected([], [Group(sample, [], [], 0, self.version) for sample in samples], {})

    def agree(self, *_: Any) -> dict[str, float]:
        return {}


def halves(answer: Callable[..., Any] = lambda _: []) -> tuple[Any, overlap.Overlap]:
    half: Any = Half(Desk(answer))
    samples: Any = [[f"sample {step}/{slot}" for slot in range(3)] for step in range(4)]
    return half, overlap.Overlap(half, samples, 1)


@pytest.mark.parametrize("fault", [TrainingError("nan"), KeyboardInterrupt(), Terminated()])
def test_a_fault_of_the_learning_ends_the_draw_beside_it(fault):
    """Ctrl-C among them: what a server is asked is given up, and no thread is left."""
    asked, told = threading.Event(), list[bool]()

    def never(stop: threading.Event) -> Any:
        asked.set()
        told.append(stop.wait(PATIENCE))
        raise Stopped

    _, both = halves(never)
    before = set(threading.enumerate())
    with pytest.raises(type(fault)), both.beside(1, Clock()):
        assert asked.wait(PATIENCE)
        raise fault
    assert within_patience(lambda: not set(threading.enumerate()) - before)
    assert told and all(told)
    assert both.next is None


def test_a_fault_of_the_draw_is_raised_at_the_end_of_the_learning_at_the_latest():
    def gone(_: threading.Event) -> Any:
        raise TrainingError("the rollout server is gone")

    _, both = halves(gone)
    with pytest.raises(TrainingError, match="is gone"), both.beside(1, Clock()):
        pass


def test_weights_are_not_sent_while_a_batch_is_drawn():
    learned = threading.Event()
    half, both = halves(lambda _: learned.wait(PATIENCE))
    with both.beside(1, Clock()):
        assert within_patience(lambda: bool(half.sampler._desks))
        with pytest.raises(MismatchError, match="other weights while they draw a batch"):
            half.sampler.sync()
        learned.set()
    assert not half.sampler._desks and both.next is not None


def test_a_group_of_older_weights_is_never_learned():
    half, both = halves()
    for version, staleness in ((3, 0), (2, 1)):
        half.version = version
        assert both.take(3, Clock()).statistics == {"staleness": staleness}
    for version in (1, 4):
        half.version = version
        with pytest.raises(MismatchError, match=rf"step 3: .* are {3 - version} batches old"):
            both.take(3, Clock())


def test_a_server_that_lost_its_weights_meanwhile_is_not_given_others(monkeypatch):
    sent = list[Any]()
    half, _ = halves()
    sampler, server = half.sampler, half.sampler.servers[0]
    for name, does in (("_held", "default"), ("_check", None), ("_weights", ())):
        monkeypatch.setattr(sampler, name, lambda *_, does=does: does)
    monkeypatch.setattr(vllm_server, "push", lambda servers, *_: sent.append(servers))
    sampler._restore(server)
    assert len(sent) == 1
    half.let_weights_move()
    with pytest.raises(TrainingError, match=rf"{server.url} has lost its weights.*resume=auto"):
        sampler._restore(server)
    assert len(sent) == 1


def has_failed(check: Callable[[], None]) -> bool:
    try:
        check()
    except overlap.DrawFailed:
        return True
    return False


# ----------------------------------------------------------------------------------------- a stop


@pytest.mark.slow
def test_a_stopped_run_learns_the_batch_that_was_drawn_already(make_context, monkeypatch):
    """By older weights than those of the checkpoint, and with groups that were drawn anew."""
    settings = [*OVERLAP, "grpo.degenerate_groups=resample", "grpo.resample_limit=1"]
    monkeypatch.setattr(
        Collector,
        "score",
        lambda _, __, groups: [[Score(sum(c.tokens) % 2) for c in group] for group in groups],
    )
    whole, half = make_context(*settings), make_context(*settings)
    expected = logged(whole)
    assert expected[2]["resampled_groups"] > 0

    again = stopped(half, after=1)
    last = logged(again)
    assert [untimed(line) for line in last] == [untimed(expected[2])]
    assert same(weights(again), weights(whole))
    (saved,) = (half.folder.path / "checkpoints").glob("grpo-step-*/drawn.json")
    held = json.loads(saved.read_text())
    held["groups"][1]["id"] = "drawn/999"
    saved.write_text(json.dumps(held))
    with pytest.raises(MismatchError, match=r"before grpo step 2 holds completions to drawn/999"):
        grpo.train(again)


def untimed(line: dict[str, float]) -> dict[str, float]:
    timed = ("seconds", "tokens_per_second", "peak_memory", "host_memory")
    return {name: value for name, value in line.items() if not name.startswith(timed)}
