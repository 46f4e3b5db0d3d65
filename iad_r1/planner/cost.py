"""GPU-hours of a run, predicted: what its steps compute, over how fast an H100 was seen to compute.

A step of SC-GRPO samples completions, has the reference score them, and updates the weights; a
step of PA-SFT updates them. Updates and scores are bound by arithmetic, sampling by the weights
that every token reads from memory. The shares below say how much of the peak is reached. The first
three were measured, the last is assumed: vLLM has not been timed on a GPU here.
"""

from __future__ import annotations

from dataclasses import dataclass

from iad_r1.planner.memory import Work
from iad_r1.planner.widths import Architecture

BYTES = 2  # of a weight in bfloat16


@dataclass(frozen=True)
class Speed:
    """A GPU, and the shares of its peaks that steps reach: one group per forward, as released.

    Of bench/results/gpu-2026-11-27.json, one H100: updates 9.8 % (Qwen2.5-VL-3B) and 10.7 %
    (LLaVA-OneVision-0.5B), PA-SFT 6.4 %, references 22 % and 11 %.
    """

    peak: float = 989e12  # operations a second, dense bfloat16
    bandwidth: float = 3.35e12  # bytes a second
    update: float = 0.10
    sft: float = 0.064
    reference: float = 0.16
    reading: float = 0.4  # of the bandwidth, while vLLM samples: assumed


H100 = Speed()


def flop(model: Architecture, work: Work) -> float:
    """Floating-point operations that one forward and backward pass has to make.

    Twice the weights for every token in the forward pass, four times in the backward pass, and the
    same for queries with keys and weights with values, of which causal attention has half (as in
    PaLM, Chowdhery et al. 2022, appendix B). The output layer counts for completion tokens, the
    vision tower for its patches without their attention.
    """
    text, vision = model.text, model.vision
    p, t = work.prompt, work.fed
    if work.packed:
        pairs = work.groups * p * p / 2 + work.rows * (t * p + t * t / 2)
    else:
        pairs = work.rows * (p + t) ** 2 / 2
    language = text.layers * text.layer * work.tokens + text.table * work.targets
    tower = vision.kept * vision.layer * work.patches
    projector = sum(i * o for i, o in vision.maps) * work.features
    return 6.0 * (language + tower + projector) + 12.0 * text.layers * text.attention * pairs


def update(model: Architecture, work: Work, speed: Speed = H100) -> float:
    """GPU-seconds of an optimiser step of SC-GRPO over `work`."""
    return flop(model, work) / (speed.peak * speed.update)


def reference(model: Architecture, work: Work, speed: Speed = H100) -> float:
    """GPU-seconds in which the reference scores the completions of `work`: a forward pass."""
    return flop(model, work) / 3 / (speed.peak * speed.reference)


def sampling(model: Architecture, work: Work, speed: Speed = H100) -> float:
    """GPU-seconds in which one vLLM engine samples `work`, all rows at once: every token reads the
    language model and the keys and values so far (half of a completion's, on average)."""
    text = model.text
    cache = 2 * text.layers * text.keys * work.rows * (work.prompt + work.length / 2)
    token = BYTES * (text.parameters + cache) / (speed.bandwidth * speed.reading)
    prompts = Work(work.groups, work.text, work.picture, work.pictures, 1, 1)
    return work.length * token + reference(model, prompts, speed)


def sft(model: Architecture, work: Work, speed: Speed = H100) -> float:
    """GPU-seconds of an optimiser step of PA-SFT over `work`."""
    return flop(model, work) / (speed.peak * speed.sft)


def grpo(model: Architecture, work: Work, speed: Speed = H100) -> float:
    """GPU-seconds of a step of SC-GRPO: sampling, the reference and the update."""
    return sum(part(model, work, speed) for part in (sampling, reference, update))


def traffic(model: Architecture, gpus: int) -> float:
    """Bytes that each of several GPUs sends for an optimiser step under ZeRO-2: it gives away the
    gradients of the others' shares and gets their new weights (ZeRO, Rajbhandari et al. 2020,
    section 7)."""
    return 2 * BYTES * model.parameters * (gpus - 1) / gpus
