"""The small parts every training stage stands on."""

from __future__ import annotations

import io
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import BatchFeature

from iad_r1 import schema
from iad_r1.data.drawn.defects import DEFECT_TYPES
from iad_r1.errors import TrainingError
from iad_r1.learn import optim
from iad_r1.learn.learner import Learner
from iad_r1.loops import pretrain, rollout_log
from iad_r1.settings.training import Length, Optimiser
from iad_r1.types import Completion, Group, Sample, Score, Solution, StopReason


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 12), st.integers(0, 5))
def test_every_item_comes_once_per_epoch_and_every_batch_is_full(items, size, steps, seed):
    found = optim.batches(range(items), size, steps, seed)
    assert [len(batch) for batch in found] == [size] * steps
    flat = [item for batch in found for item in batch]
    for epoch in range(len(flat) // items):
        assert sorted(flat[epoch * items : (epoch + 1) * items]) == list(range(items))
    assert found == optim.batches(range(items), size, steps, seed)


def test_epochs_differ_in_order_and_an_empty_pool_is_refused():
    first, second = optim.batches(range(50), 50, 2, seed=0)
    assert first != second and sorted(first) == sorted(second)
    with pytest.raises(TrainingError, match="empty"):
        optim.batches([], 1, 1, 0)


@pytest.mark.parametrize(
    ("steps", "epochs", "wanted"),
    [(7, None, 7), (None, 2, 20), (7, 2, 7), (50, 2, 20), (None, 0.01, 1)],
)
def test_training_ends_at_whichever_limit_comes_first(steps, epochs, wanted):
    assert optim.n_steps(Length(steps=steps, epochs=epochs), items=80, batch_size=8) == wanted


PAPERS = Optimiser(
    learning_rate=1e-6, adam_betas=[0.9, 0.999], schedule="constant_with_warmup",
    warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0, save_every=1,
)  # fmt: skip


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(2, 2)
        self.language = nn.Linear(2, 2)

    def forward(self, x):
        return self.language(self.visual(x))


def optimizer(model, *, weight_decay, vision_lr_scale):
    return optim.optimizer(
        model,
        learning_rate=1.0,
        betas=(0.9, 0.999),
        weight_decay=weight_decay,
        vision_lr_scale=vision_lr_scale,
    )


def test_the_tower_learns_at_its_own_rate_and_only_matrices_decay():
    model = Model()
    adam = optimizer(model, weight_decay=0.5, vision_lr_scale=0.1)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in adam.param_groups
        for parameter in group["params"]
    }
    assert found[id(model.visual.weight)] == (0.1, 0.5)
    assert found[id(model.visual.bias)] == (0.1, 0.0)
    assert found[id(model.language.weight)] == (1.0, 0.5)
    assert found[id(model.language.bias)] == (1.0, 0.0)
    optim.train_only(model, vision=False)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_an_infinite_gradient_leaves_the_weights_as_they_were():
    model = Model()
    adam = optimizer(model, weight_decay=0.0, vision_lr_scale=1.0)
    schedule = optim.scheduler(adam, "cosine", 0, 10)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    with pytest.raises(TrainingError, match="sft step 3: the gradient norm is"):
        optim.update(model, adam, schedule, 1.0, "sft step 3")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gradients_of_micro_batches_are_added_in_float32_and_none_stands_twice():
    """In bfloat16 1 + 1/512 is 1: all but the first part would be lost."""
    model = Model().to(torch.bfloat16)

    def loss(share: float) -> torch.Tensor:
        return (model.language.weight * share).sum()

    learner = Learner(model, PAPERS, 10)
    weight, master = next((w, m) for w, m in learner.masters if w is model.language.weight)
    parts = [partial(loss, share) for share in (1, *[2**-9] * 8)]
    learner.accumulate(parts, "here")
    assert all(p.grad is None for p in model.parameters())
    assert master.grad is not None and master.grad.dtype == torch.float32
    assert (master.grad == 1 + 8 * 2**-9).all()
    learner.close()
    model.language.weight.sum().backward()
    assert weight.grad is not None, "a model that is handed on keeps its gradients itself"


def test_states_in_main_memory_are_stepped_by_the_kernel_that_uses_all_threads():
    def kernel(**options):
        adam = optim.optimizer(
            Model(), learning_rate=1.0, betas=(0.9, 0.99), weight_decay=0.1, vision_lr_scale=1.0,
            **options,
        )  # fmt: skip
        return adam.defaults["fused"]

    assert kernel(offloaded=True) is True and not kernel()


def test_a_block_has_the_class_of_the_defect_in_it_and_cells_are_row_major():
    masks = np.zeros((1, 64, 96), dtype=np.uint8)
    masks[0, 40, 70] = 5  # row 1 of 2, column 2 of 3; inside the cell: row 1 of 4, column 0 of 4
    labels = pretrain.block_labels(masks, cell=32)
    assert labels.shape == (1, 6, 16)
    assert labels[0, 5, 4] == 5 and (labels != 0).sum() == 1


def test_masks_of_photographs_teach_the_tower_at_the_size_it_sees_them():
    """A drawn type has a class of its own, all others share one; an unmarked defect has none."""

    def photograph(kind, box=None):
        mask = Image.new("L", (128, 64))
        if box:
            mask.paste(255, box)
        solution = Solution("Yes", None, kind) if kind else Solution("No")
        picture = Image.new("RGB", (128, 64))
        return Sample(
            "id", "d", "sft", "p", picture, solution, mask=mask if box else None
        )  # fmt: skip

    samples = [
        photograph(None),
        photograph("spot"),
        photograph("spot", (80, 40, 81, 41)),
        photograph("hole", (0, 0, 128, 64)),
    ]
    found = list(pretrain.marked(samples, lambda picture: picture.resize((64, 32)), 8))
    assert [picture.size for picture, _ in found] == [(64, 32)] * 3
    good, spot, hole = (labels for _, labels in found)
    assert good.shape == (2, 16) and not good.any()
    assert spot[1, 9] == 8 and (spot != 0).sum() == 1  # row 2 of 4, column 1 of 4
    assert (hole == 1 + DEFECT_TYPES.index("hole")).all()


def test_a_whitened_embedding_gives_every_direction_the_same_weight():
    torch.manual_seed(0)
    spread = torch.tensor([30.0, 5.0, 1.0, 0.5])
    patches = torch.randn(20_000, 4) * spread
    embed = nn.Linear(4, 3, bias=False)
    pretrain.whiten(embed, patches, floor=0.0)
    out = embed(patches)
    torch.testing.assert_close(out.T @ out / len(out), torch.eye(3), atol=1e-3, rtol=0)


class Tower(nn.Module):
    """What `centre` knows of a tower: a last layer behind others, and what comes of a picture."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.merger: Any = nn.Module()
        self.merger.mlp = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4))

    def forward(self, pixels, grid_thw):
        return SimpleNamespace(pooler_output=self.merger.mlp(pixels))


def test_centred_features_differ_as_before_and_share_nothing():
    def processor(images, return_tensors):
        values = torch.tensor(np.asarray(images[0]) / 255, dtype=torch.float32).reshape(-1, 3)
        return BatchFeature({"pixel_values": values, "image_grid_thw": None})

    torch.manual_seed(0)
    tower, rng = Tower(), np.random.default_rng(0)
    tower.merger.mlp[-1].bias.data += 20.0
    pictures = [Image.fromarray(rng.integers(0, 255, (2, 2, 3), np.uint8)) for _ in range(9)]
    values = torch.cat([processor([picture], "pt")["pixel_values"] for picture in pictures])
    before = tower(values, None).pooler_output
    pretrain.centre(tower, processor, pictures, length=4.0)
    after = tower(values, None).pooler_output
    torch.testing.assert_close(after.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    assert after.norm(dim=1).mean().item() == pytest.approx(4.0, rel=1e-3)
    ratio = (after[1:] - after[0]) / (before[1:] - before[0])
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-2, atol=0)


def said(*texts: str, stop: StopReason = StopReason.STOP) -> list[Completion]:
    return [
        Completion(text, (1,) * (i + 1), (0.0,) * (i + 1), stop) for i, text in enumerate(texts)
    ]


def sample(answer) -> Sample:
    return Sample("id", "d", "rl", "p", Image.new("RGB", (400, 200)), Solution(answer))


def test_what_is_logged_of_a_batch_is_what_was_said_and_earned():
    yes, no = "<answer>Yes</answer>", "<answer>No</answer>"
    right, wrong = {"answer": 1.0}, {"answer": 0.0}
    cut = said(no, "nonsense", stop=StopReason.LENGTH)
    groups = [
        Group(sample("Yes"), said(yes, no), [Score(3.0, right), Score(1.0, wrong)]),
        Group(sample("No"), cut, [Score(2.0, right), Score(2.0, right)], attempt=2),
    ]
    found = rollout_log.reward_statistics(groups)
    assert found["reward"] == 2.0 and found["reward_anomalous"] == 2.0
    assert found["reward_answer"] == 0.75 and found["reward_answer_normal"] == 1.0
    assert found["degenerate_groups"] == 0.5 and found["truncated"] == 0.5
    assert (found["length_mean"], found["length_max"]) == (1.5, 2)
    assert (found["yes_rate"], found["gold_yes_rate"]) == (0.25, 0.5)
    assert found["invalid_rate"] == 0.25
    rows = rollout_log.rollout_rows(groups, [[1.0, -1.0], [0.0, 0.0]])
    assert len(rows) == 4 and Counter(row["advantage"] for row in rows)[0.0] == 2
    assert rows[0]["reward_answer"] == 1.0 and rows[3]["completion"] == "nonsense"
    assert [row["attempt"] for row in rows] == [0, 0, 2, 2]
    assert Image.open(io.BytesIO(rows[0]["thumbnail"])).size == (128, 64)
    whole = rollout_log.failed_rows("{image}Any defect?", groups)
    assert whole[1]["token_ids"] == [1, 1] and whole[1]["sampler_logprobs"] == [0.0, 0.0]
    assert {row["prompt"] for row in whole} == {"{image}Any defect?"} and whole[3]["reward"] == 2.0


def test_the_yes_rate_is_read_as_evaluation_reads_answers():
    loose = partial(schema.read_answer, evaluator="iadr1_compat")
    text = "<answer>Yes, it is</answer>"
    groups = [Group(sample("Yes"), said(text), [Score(0.0, {"answer": 0.0})])]
    rates = {
        reader: rollout_log.reward_statistics(groups, reader)["yes_rate"]
        for reader in (schema.read_answer, loose)
    }
    assert rates == {schema.read_answer: 0.0, loose: 1.0}


def test_updates_smaller_than_bfloat16_can_add_are_not_lost(tmp_path):
    """At the papers' learning rate every single step rounds away; their sum must not, and a
    checkpoint between them must not round it away either."""
    torch.manual_seed(0)
    model = Model().to(torch.bfloat16)
    start = model.language.bias.detach().clone()
    learner = Learner(model, PAPERS, 2000)
    for step in range(2000):
        learner.accumulate([lambda: model.language.bias.sum()], "")
        learner.update("")
        if step == 0:
            assert torch.equal(model.language.bias, start)  # one step is too small to be seen
        if step == 1000:
            learner.save(tmp_path)
            learner.close()
            learner = Learner(model, PAPERS, 2000)
            learner.load(tmp_path)
    moved = (start - model.language.bias).float()
    torch.testing.assert_close(moved, torch.full_like(moved, 2e-3), atol=2**-9, rtol=0)
    assert (moved > 0).all()
