"""Predicted memory of training and sampling, in bytes, by arithmetic on a model's widths.

Nothing is loaded. Two kinds of formula:

**States** follow the accounting of ZeRO (Rajbhandari et al. 2020, "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", section 3 and figure 1). With P parameters of b bytes
(2 in bfloat16, 4 in float32), T of them trained, on N ranks:

    engine    weights   gradients   AdamW moments   float32 master weights
    single    bP        4T          8T              4T if b = 2
    zero2     bP        bT / N      8T / N          4T / N   (kept by DeepSpeed in float32 too)
    zero3     bP / N    bT / N      8T / N          4T / N

so full bfloat16 training under ZeRO holds 2 + 2 + 8 + 4 = 16 bytes per parameter on one rank, and
ZeRO-3 over 4 ranks a quarter of that each. Offloading to the CPU moves moments, master weights and
gradients to main memory, with zero3 the weights too. LoRA trains its adapter alone, whose weights
peft keeps in float32.

**Activations** are what autograd keeps for the backward pass of this project's own forward
(`packing.completion_logprobs`) with transformers' modules and SDPA. The terms were read from the
code and compared tensor by tensor with `torch.autograd.graph.saved_tensors_hooks`; tests repeat
that. What the log-probabilities take for a moment was compared with torch's allocator, as tests do.
`bench/plan.py` compares the whole with measured peaks.

Axes: n tokens of a forward, m patches of its pictures; h, f, V widths of the language model
(hidden, intermediate, vocabulary), v, g those of the vision tower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from iad_r1.planner.widths import Architecture, Picture, Text, Vision
from iad_r1.settings.training import Packing

EngineName = Literal["single", "zero2", "zero3"]
Part = Literal["vision", "projector", "language"]
ALL: tuple[Part, ...] = ("vision", "projector", "language")
GIB = 2**30
CHUNK = 2**26  # float32 logits computed at once: packing.LOGITS

# DeepSpeed's defaults, in elements: reduce_bucket_size of ZeRO-2 and -3, and how many gathered
# parameters ZeRO-3 keeps at most (stage3_max_live_parameters).
REDUCE_BUCKET = 500_000_000
LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on every linear layer of the trained parts, the output layer excepted."""

    rank: int
    dropout: bool = False


@dataclass(frozen=True)
class Setup:
    """How a model is trained on each of `ranks` GPUs (`cuda`), or on a CPU."""

    engine: EngineName = "single"
    offload: bool = False
    ranks: int = 1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    lora: Lora | None = None
    train: tuple[Part, ...] = ALL  # the other parts stay as they are
    reference: bool = False  # whether a frozen copy of the weights is kept
    checkpointing: bool = False  # whether layers are computed again in the backward pass
    cuda: bool = True

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return 2 if self.precision == "bfloat16" else 4

    @property
    def sees(self) -> bool:
        """Whether gradients pass through the vision tower."""
        return "vision" in self.train


@dataclass(frozen=True)
class Work:
    """What one forward pass carries: prompts with their completions.

    `groups` prompts of `text` tokens and `pictures` pictures each, `completions` per prompt (G of
    SC-GRPO, 1 of PA-SFT) of `length` tokens. `packing` is that of `completion_logprobs`.
    """

    groups: int
    text: int
    picture: Picture
    pictures: int
    completions: int
    length: int
    packing: Packing = "group"

    @property
    def packed(self) -> bool:
        """Whether a group is one sequence; else one row per completion."""
        return self.packing != "off"

    @property
    def masked(self) -> bool:
        """Whether attention is SDPA with a mask and gathered keys (`packing=group`)."""
        return self.packing == "group"

    @property
    def prompt(self) -> int:
        """Tokens of one prompt."""
        return self.text + self.pictures * self.picture.tokens

    @property
    def rows(self) -> int:
        return self.groups * self.completions

    @property
    def fed(self) -> int:
        """Tokens of a completion that go through the layers."""
        return self.length - 1 if self.packed else self.length

    @property
    def tokens(self) -> int:
        """Tokens that go through the layers (n)."""
        prompts = self.groups if self.packed else self.rows
        return prompts * self.prompt + self.rows * self.fed

    @property
    def targets(self) -> int:
        """Tokens whose log-probability is computed."""
        return self.rows * self.length

    @property
    def patches(self) -> int:
        """Rows of the vision tower (m)."""
        return self.groups * self.pictures * self.picture.patches

    @property
    def features(self) -> int:
        """Picture tokens that the tower hands over."""
        return self.groups * self.pictures * self.picture.tokens

    @property
    def budget(self) -> int:
        """`token_budget` that lets exactly these groups into one forward."""
        copies = 1 if self.packed else self.completions
        return self.groups * (copies * self.prompt + self.completions * self.length)


# --------------------------------------------------------------------------- states


@dataclass(frozen=True)
class States:
    """Bytes that stay for the whole of training: on each GPU, and per rank in main memory."""

    weights: int
    gradients: int
    optimiser: int
    master: int
    reference: int
    host: int = 0

    @property
    def standing(self) -> int:
        """On the GPU when no gradient is there: between two steps."""
        return self.weights + self.optimiser + self.master + self.reference


def adapter(model: Architecture, setup: Setup) -> int:
    """Parameters of the adapters: r (in + out) for every adapted linear layer. 0 without LoRA."""
    if setup.lora is None:
        return 0
    pairs = {
        "language": model.text.linears * model.text.layers,
        "vision": model.vision.linears * model.vision.layers,
        "projector": model.vision.maps,
    }
    return setup.lora.rank * sum(i + o for part in setup.train for i, o in pairs[part])


def trained(model: Architecture, setup: Setup) -> int:
    """Parameters that get a gradient (T)."""
    if setup.lora is not None:
        return adapter(model, setup)
    return sum(model.sizes[part] for part in setup.train)


def states(model: Architecture, setup: Setup) -> States:
    """Weights, gradients, AdamW moments, master weights and reference (see this module)."""
    b, t, count, n = setup.bytes, _trained_bytes(setup), trained(model, setup), setup.ranks
    weights = b * model.parameters + (t * count if setup.lora else 0)
    copy = b * model.parameters if setup.reference else 0
    if setup.engine == "single":
        return States(weights, 4 * count, 8 * count, 4 * count if t == 2 else 0, copy)
    if setup.engine == "zero3":
        weights, copy = _share(weights, n), _share(copy, n)
    gradients, optimiser, master = (_share(size * count, n) for size in (t, 8, 4))
    if not setup.offload:
        return States(weights, gradients, optimiser, master, copy)
    host = optimiser + master + _share(4 * count, n)  # of gradients, in float32
    if setup.engine == "zero3":
        return States(0, 0, 0, 0, 0, host + weights + copy)
    return States(weights, 0, 0, 0, copy, host)


def _trained_bytes(setup: Setup) -> int:
    """Of one trained weight and of its gradient: peft keeps adapters in float32, until DeepSpeed
    casts the whole model."""
    return 4 if setup.lora is not None and setup.engine == "single" else setup.bytes


def _share(total: int, ranks: int) -> int:
    return -(-total // ranks)


def buffers(model: Architecture, setup: Setup) -> int:
    """What DeepSpeed holds beside its states: the bucket in which gradients are summed, allocated
    whole, and the weights ZeRO-3 has gathered: the output layer, and others up to its limit."""
    if setup.engine == "single":
        return 0
    live = min(LIVE_PARAMETERS + model.text.table, model.parameters)
    return setup.bytes * (REDUCE_BUCKET + (live if setup.engine == "zero3" else 0))


def whole(model: Architecture, setup: Setup) -> int:
    """What ZeRO-3 gathers for passes that differ between ranks (`Learner.whole`): all weights of
    one model, for sampling with the training weights and for the reference."""
    return setup.bytes * model.parameters if setup.engine == "zero3" else 0


# --------------------------------------------------------------------------- activations


def text_layer(text: Text, work: Work, setup: Setup) -> int:
    """Bytes that one decoder layer keeps for its backward pass.

    Two RMS norms keep the float32 copy of their input (4nh), the inverse deviation (4n), and, if
    their scale is trained, the normalised input (bnh); linear layers keep their input; SiLU and the
    product after it keep three of width f.
    """
    n, h, f, b = work.tokens, text.hidden, text.intermediate, setup.bytes
    norms = 2 * (4 * n * h + 4 * n)
    core = attention(text, work, b) + 3 * b * n * f
    if setup.lora is not None:
        out = b * n * text.attention if b == 2 and not work.masked else 0  # beside its copy
        return norms + core + out + _adapters(text, n, setup.lora, setup)
    # normalised inputs; inputs of q, k, v (shared), o, gate and up (shared), down
    return norms + core + 2 * b * n * h + b * n * (2 * h + text.attention + f)


def _adapters(text: Text, n: int, lora: Lora, setup: Setup) -> int:
    """What LoRA layers keep instead of inputs: each its own float32 copy of a bfloat16 input (in
    float32 the input itself, shared as above), the r values between its two matrices, and the
    dropout mask (a float32 factor on a CPU, a byte on a GPU)."""
    h, f, width = text.hidden, text.intermediate, text.attention
    separate = 5 * h + width + f
    inputs = separate if setup.bytes == 2 or lora.dropout else 2 * h + width + f
    mask = separate * (1 if setup.cuda else 4) if lora.dropout else 0
    return n * (4 * inputs + 4 * 7 * lora.rank + mask)


def attention(text: Text, work: Work, b: int) -> int:
    """Bytes attention keeps in one layer, without the input of the output projection (which is its
    output in plain rows, and in FlashAttention and FlexAttention).

    Queries, keys and values; outputs and their log-normaliser (float32, one per head). Packed
    through SDPA, completions attend to [their prompt's keys, their own], gathered once per
    completion.
    """
    n, width, keys = work.tokens, text.attention, text.keys
    qkv = b * n * (width + 2 * keys)
    if not work.masked:
        return qkv + 4 * text.heads * n
    prompts = work.groups * work.prompt
    kept = qkv + b * prompts * width + 4 * text.heads * prompts
    if work.fed == 0:
        return kept
    own = work.rows * work.fed
    gathered = 2 * b * work.rows * (work.prompt + work.fed) * keys
    return kept + gathered + 2 * b * own * width + 4 * text.heads * own


def attention_mask(text: Text, work: Work, b: int) -> int:
    """Bytes of the packed forward's mask, which all layers share: which keys each completion token
    sees, in rows of a multiple of 8, for every query head that reads the same keys. FlexAttention's
    mask is of blocks of tokens, too small to count."""
    if not work.masked:
        return 0
    row = -(-(work.prompt + work.fed) // 8) * 8
    return b * work.rows * work.fed * (text.heads // text.key_heads) * row


def vision_layer(vision: Vision, m: int, b: int) -> int:
    """Bytes that one layer of the vision tower keeps for m patches.

    Norms keep input and output (RMS norms the float32 copy of the input, and the normalised one);
    attention keeps q, k, v, its output and, where q, k and v come from one matrix, all of that
    matrix' output; the MLP its inner values: 4 wide with a gate, 3 with QuickGELU, 2 with GELU.
    """
    v, g = vision.hidden, vision.intermediate
    normaliser = 4 * vision.heads * m
    if vision.kind == "qwen2_5_vl":
        return 2 * (4 * m * v + 4 * m) + 11 * b * m * v + normaliser + 4 * b * m * g
    per_token = {"qwen2_vl": 11, "clip": 8, "siglip": 8, "internvl": 10}[vision.kind]
    inner = 3 if vision.kind in ("qwen2_vl", "clip") else 2
    return per_token * b * m * v + 16 * m + normaliser + inner * b * m * g


def vision_rest(vision: Vision, work: Work, b: int) -> int:
    """Bytes kept around the tower's layers: pixels, norms, rotary angles, and the projector."""
    m, v, out = work.patches, vision.hidden, vision.out
    handed = b * work.features * out
    if vision.kind.startswith("qwen"):
        rms = 4 * m * v + 2 * b * m * v if vision.kind == "qwen2_5_vl" else 2 * b * m * v
        angles = 2 * 4 * m * (v // vision.heads)
        return b * m * vision.inputs + rms + angles + 2 * b * m * v + handed
    patches = m * vision.side**2 // (vision.side**2 + vision.class_token)
    tokens = patches // vision.merge**2
    before = 2 * b * m * v if vision.kind == "clip" else 0
    return b * patches * (vision.inputs + v) + before + 2 * b * tokens * out + handed


def vision_activations(model: Architecture, work: Work, setup: Setup) -> int:
    """Bytes kept by tower and projector until the end of the backward pass."""
    if not setup.sees or not work.patches:
        inner = 2 if "projector" in setup.train else 0
        return (1 + inner) * setup.bytes * work.features * model.vision.out
    vision, m, b = model.vision, work.patches, setup.bytes
    layer = b * m * vision.hidden if setup.checkpointing else vision_layer(vision, m, b)
    return vision.kept * layer + vision_rest(vision, work, b)


def text_activations(model: Architecture, work: Work, setup: Setup) -> int:
    """Bytes kept by the language model, its mask, its last norm and the states that predict the
    targets."""
    text, n, b = model.text, work.tokens, setup.bytes
    layer = b * n * text.hidden if setup.checkpointing else text_layer(text, work, setup)
    norm = 4 * n * text.hidden + 4 * n
    full = 0 if setup.lora else b * n * text.hidden
    if not setup.lora or b == 2:  # the float32 output layer keeps its input in any case
        full += b * work.targets * text.hidden
    mask = attention_mask(text, work, b)
    return text.layers * layer + norm + full + mask + 2 * b * n * text.head_dim


def passing_text(model: Architecture, work: Work, setup: Setup) -> int:
    """What the backward pass through one decoder layer adds while it lasts: with checkpointing the
    layer computed again; gradients of the MLP's three inner values and of the residual stream, in
    float32 too around a norm."""
    text, n, b = model.text, work.tokens, setup.bytes
    again = text_layer(text, work, setup) if setup.checkpointing else 0
    return again + b * n * (3 * text.intermediate + 2 * text.hidden) + 4 * n * text.hidden


def passing_vision(model: Architecture, work: Work, setup: Setup) -> int:
    """The same for one layer of the tower, if gradients reach it."""
    if not setup.sees:
        return 0
    vision, m, b = model.vision, work.patches, setup.bytes
    again = vision_layer(vision, m, b) if setup.checkpointing else 0
    return again + b * m * (3 * vision.intermediate + 2 * vision.hidden) + 4 * m * vision.hidden


def logprobs(model: Architecture, work: Work, setup: Setup, entropy: bool) -> int:
    """The most that computing log-probabilities of c tokens at a time holds at once, beside the
    states (c V float32 values are `CHUNK` at most).

    Forward: logits, which are float32 in any precision, logits over temperature, and log-probs;
    with entropy logits, log-probs, and two more. On a CPU a bfloat16 output layer is copied to
    float32. Backward: log-probs and two gradients of that size; then the gradient of the logits, in
    the weights' precision too, and that of the output layer, if it is trained. With several chunks
    the gradient of those before waits for all of this, and autograd adds the two into a third.
    """
    text, b = model.text, setup.bytes
    chunk, several = _chunk(text, work)
    low = b if b == 2 else 0
    copied = 4 * chunk + 4 * text.table if b == 2 and not setup.cuda else 0
    table = head_gradient(model, setup)
    return max(
        (16 if entropy else 12) * chunk,
        copied,
        12 * chunk + several * table,
        (4 + low) * chunk + (1 + several) * table,
        several * (3 * table + (4 * chunk if low else 0)),
    )


def _chunk(text: Text, work: Work) -> tuple[int, bool]:
    """Logits computed at once, and whether there are more of them."""
    tokens = max(1, CHUNK // text.vocab)
    return min(work.targets, tokens) * text.vocab, work.targets > tokens


def head_gradient(model: Architecture, setup: Setup) -> int:
    """Bytes of a gradient of the output layer; 0 if it is not trained."""
    learns = setup.lora is None and "language" in setup.train
    return setup.bytes * model.text.table if learns else 0


def scoring(model: Architecture, work: Work, setup: Setup) -> int:
    """The most that a pass without gradient holds beside the states, such as the reference's: the
    log-probabilities, without entropy, or the inner values of one layer."""
    text, n, b = model.text, work.tokens, setup.bytes
    layer = b * n * (3 * text.intermediate + 2 * text.hidden) + 4 * n * text.hidden
    return max(12 * _chunk(text, work)[0], layer, vision_layer(model.vision, work.patches, b))


# --------------------------------------------------------------------------- peaks


@dataclass(frozen=True)
class Training:
    """Bytes of one optimiser step on each GPU, by component, and the peaks of its phases."""

    states: States
    buffers: int
    activations: int
    logprobs: int
    backward: int  # the most at once in forward and backward, states included
    update: int  # the most at once in the optimiser's step

    @property
    def peak(self) -> int:
        return max(self.backward, self.update)


def training(
    model: Architecture, work: Work, setup: Setup, *, forwards: int = 1, entropy: bool = True
) -> Training:
    """Memory of a step of `forwards` forward passes like `work`, in the steady state.

    Gradients appear while activations go, so with one forward the two are not there together: the
    backward pass starts with all activations, and reaches the tower with the language model's
    gradients and the tower's activations. With several, gradients are there from the second on.
    """
    held, extra = states(model, setup), buffers(model, setup)
    vision = vision_activations(model, work, setup)
    kept = vision + text_activations(model, work, setup)
    chunk = logprobs(model, work, setup, entropy)
    start = kept + max(chunk, passing_text(model, work, setup))
    table = head_gradient(model, setup)
    share_of_text = held.gradients
    if setup.sees and setup.lora is None:
        share_of_text = held.gradients * model.text.parameters // model.parameters
    entered = vision + passing_vision(model, work, setup)
    turned = max(vision + table, entered) + share_of_text
    standing = held.standing + extra
    backward = standing + max(start, turned, held.gradients)
    if forwards > 1:
        backward = standing + held.gradients + max(start, vision + table, entered)
    return Training(
        states=held,
        buffers=extra,
        activations=kept,
        logprobs=chunk,
        backward=backward,
        update=standing + _update(model, setup, held.gradients),
    )


def _update(model: Architecture, setup: Setup, gradients: int) -> int:
    """What the optimiser's step needs beside the states: with engine=single the gradients, which
    are float32, and on a CPU two values for each weight of the largest matrix; under ZeRO float32
    gradients beside those of the backward pass, and on a CPU the square roots of all second moments
    at once. torch's fused AdamW, on a GPU, needs nothing."""
    count = trained(model, setup)
    if setup.engine != "single":
        beside = (4 if setup.cuda else 8) * count
        return gradients + (0 if setup.offload else _share(beside, setup.ranks))
    if setup.cuda:
        return gradients
    largest = max(model.text.table, *(i * o for i, o in model.text.linears))
    if setup.lora is not None:
        largest = setup.lora.rank * max(model.text.hidden, model.text.intermediate)
    return gradients + 8 * largest


# --------------------------------------------------------------------------- sampling


def kv_cache(text: Text, tokens: int, b: int) -> int:
    """Keys and values of `tokens` tokens: 2 x layers x key heads x head size x b bytes each
    (grouped-query attention: key heads, not query heads)."""
    return 2 * text.layers * text.keys * b * tokens


@dataclass(frozen=True)
class Sampling:
    """Bytes of a sampler on each GPU: its own weights, keys and values, and the rest."""

    weights: int
    cache: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.rest

    def filled(self, total: int) -> Sampling:
        """With a cache that takes the rest of `total` bytes, as vLLM's does."""
        return replace(self, cache=total - self.weights - self.rest)


UNSAMPLED = Sampling(0, 0, 0)


def hf_sampling(model: Architecture, work: Work, rows: int, setup: Setup) -> Sampling:
    """transformers with the training weights: the cache of `rows` completions decoded at once (one
    layer twice, while it grows), and float32 logits and float64 probabilities of one token each."""
    tokens = rows * (work.prompt + work.length)
    cache = kv_cache(model.text, tokens, setup.bytes)
    growing = cache // model.text.layers
    return Sampling(0, cache, growing + 28 * rows * model.text.vocab)


def vllm_sampling(model: Architecture, work: Work, rows: int, workspace: int) -> Sampling:
    """A vLLM engine: all weights in bfloat16 (never sharded here), the cache of `rows` completions
    with one copy of each prompt (prefix caching), and a workspace for graphs and activations."""
    tokens = rows * work.length + _share(rows, work.completions) * work.prompt
    return Sampling(2 * model.parameters, kv_cache(model.text, tokens, 2), workspace)
