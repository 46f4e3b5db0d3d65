"""The same completions and rewards move the same weights as TRL's GRPOTrainer, step for step.

Where the two differ by design, and so are not compared here:
- TRL 1.16 multiplies the KL term by the ratio unless `use_bias_correction_kl=False` (set below).
  At ratio 1 the value is the same and the gradient is not: the factor adds kl * grad(logp). The
  papers' objective (IAD-R1 Eq. 11, GRPO) has no such factor.
- Leave-one-out advantages: TRL has them in another trainer only.
- With several micro-batches TRL's `grpo` averages their means; ours divides by the global count of
  sequences, which is the same number when every micro-batch holds equally many.
- k1 and k2 KL: TRL has only k3.
- Importance correction: TRL applies it only with vLLM.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import packing_cases as cases
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from iad_r1.backbones.packing import completion_logprobs
from iad_r1.objective.advantages import AdvantageKind, advantages
from iad_r1.objective.losses import Aggregation, policy_loss

trl = pytest.importorskip("trl", reason="TRL is the peer these tests compare with")
datasets = pytest.importorskip("datasets", reason="TRL reads its prompts from a Dataset")

G, KL, CLIP, LIMIT = 4, 0.05, 0.2, 16
RATE = {"sgd": 0.5, "adamw": 1e-3}
QUESTIONS = ["Is there a defect?", "Look at the part. Is anything wrong with it?"]


class Scenario:
    """Two prompts with a picture each, four ragged completions each, and their rewards."""

    def __init__(self, family: str) -> None:
        self.family = family
        rng = np.random.default_rng(5)
        self.pictures = [
            Image.fromarray(rng.integers(0, 255, (60, 70 + 20 * i, 3), dtype=np.uint8))
            for i in range(2)
        ]
        self.groups = cases.completions(family, [[3, 9, 5, 12], [7, 2, 11, 4]], seed=3)
        self.rewards = [[0.0, 1.0, 0.5, 2.0], [1.5, 1.5, 0.0, 0.25]]
        start = cases.model(family)  # the policy; the reference is the twin on disk
        start.config._name_or_path = str(cases.twin_folder(family))
        self.start = start

    def prompts(self) -> list[dict]:
        processor = cases.processor(self.family)
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for q in QUESTIONS
        ]
        return [
            dict(processor(text=[text], images=[picture], return_tensors="pt"))
            for text, picture in zip(texts, self.pictures, strict=True)
        ]


def optimizer(name: str, model: Any) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=RATE[name])
    return torch.optim.AdamW(model.parameters(), lr=RATE[name], weight_decay=0.0)


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def ours(
    scenario: Scenario, rule: str, kind: AdvantageKind, aggregation: Aggregation, updates: int
) -> tuple[list[float], list[float], Tensor]:
    """Losses and KLs of each update, and the weights after the last."""
    model = copy.deepcopy(scenario.start).train()
    reference = AutoModelForImageTextToText.from_pretrained(cases.twin_folder(scenario.family))
    stepper = optimizer(rule, model)
    prompts, groups = scenario.prompts(), scenario.groups
    gains = torch.tensor([a for group in advantages(scenario.rewards, kind) for a in group])
    with torch.no_grad():
        old = completion_logprobs(model, prompts, groups).logprob
        ref = completion_logprobs(reference, prompts, groups).logprob
    losses, kls = [], []
    for _ in range(updates):
        out = completion_logprobs(model, prompts, groups, chunk=8)
        loss, stats = policy_loss(
            out.logprob, old, ref, gains, out.mask,
            clip_low=CLIP, clip_high=CLIP, kl_coef=KL, aggregation=aggregation,
            n_sequences=2 * G, n_tokens=int(out.mask.sum()), max_tokens=LIMIT,
        )  # fmt: skip
        stepper.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        losses.append(loss.item())
        kls.append(stats.scalars()["kl"])
    return losses, kls, weights(model)


def theirs(
    scenario: Scenario, rule: str, scale: str, loss_type: str, updates: int, folder: Path
) -> tuple[list[float], list[float], Tensor]:
    """The same from TRL, given our completions through its `rollout_func`."""
    model = copy.deepcopy(scenario.start)
    flat = [tokens for group in scenario.groups for tokens in group]
    table = {
        tuple(tokens): reward
        for group, rewards in zip(scenario.groups, scenario.rewards, strict=True)
        for tokens, reward in zip(group, rewards, strict=True)
    }
    ids = [p["input_ids"][0].tolist() for p in scenario.prompts() for _ in range(G)]

    def rollout(prompts: list, trainer: Any) -> dict[str, list]:
        assert len(prompts) == len(flat)
        return {
            "prompt_ids": ids,
            "completion_ids": flat,
            "logprobs": [[0.0] * len(t) for t in flat],
        }

    def reward(completion_ids: list, **_: Any) -> list[float]:
        return [table[tuple(tokens)] for tokens in completion_ids]

    config = trl.GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=2 * G, num_generations=G, max_completion_length=LIMIT,
        num_iterations=updates, max_steps=updates, shuffle_dataset=False, seed=0,
        beta=KL, epsilon=CLIP, loss_type=loss_type, scale_rewards=scale, max_grad_norm=1.0,
        use_bias_correction_kl=False,
        lr_scheduler_type="constant", learning_rate=RATE[rule], logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    rows = [
        {"prompt": [{"role": "user", "content": q}], "images": [picture]}
        for q, picture in zip(QUESTIONS, scenario.pictures, strict=True)
    ]
    trainer = trl.GRPOTrainer(
        model=model, args=config, reward_funcs=reward, rollout_func=rollout,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=cases.processor(scenario.family),
        optimizers=(optimizer(rule, model), None),
    )  # fmt: skip
    losses: list[float] = []
    compute = trainer.compute_loss

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        loss = compute(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.compute_loss = recorded
    trainer.train()
    kls = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    return losses, kls, weights(trainer.model)


CASES = [
    # rule, advantage, TRL's name for it, aggregation, TRL's name for it, updates per batch
    ("sgd", "group_std", "group", "sequence_mean", "grpo", 1),  # the papers' setting
    ("adamw", "group_std", "group", "sequence_mean", "grpo", 1),
    ("sgd", "group_std", "group", "sequence_mean", "grpo", 3),  # clipping at work
    ("sgd", "no_std", "none", "fixed_length", "dr_grpo", 2),
    ("sgd", "batch_std", "batch", "token_mean", "dapo", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize("setting", CASES, ids=["-".join(map(str, c)) for c in CASES])
def test_one_batch_moves_the_weights_as_trl_does(
    setting: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    assert_as_trl("qwen2_5_vl", setting, tmp_path)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])
def test_so_do_other_families_that_trl_trains(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TRL_EXPERIMENTAL_SILENCE", "1")
    assert_as_trl(family, CASES[0], tmp_path)


def assert_as_trl(family: str, setting: tuple, folder: Path) -> None:
    rule, kind, scale, aggregation, loss_type, updates = setting
    scenario = Scenario(family)
    start = weights(scenario.start)
    losses, kls, after = ours(scenario, rule, kind, aggregation, updates)
    their_losses, their_kls, expected = theirs(scenario, rule, scale, loss_type, updates, folder)
    assert len(losses) == len(their_losses) == updates
    assert losses == pytest.approx(their_losses, rel=1e-5, abs=1e-6)
    assert kls == pytest.approx(their_kls, rel=1e-5) and min(kls) > 1e-3
    assert cases.relative(after, expected) < 1e-5
    assert cases.relative(expected, start) > 1e-5  # the step was no mere rounding error
    if rule == "sgd":  # linear in the gradient, so the *change* must agree as well
        assert cases.relative(after - start, expected - start) < 2e-4
