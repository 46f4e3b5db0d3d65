"""Group-packed forward: the prompt and its images once for all G completions of a group.

The completions of a group share a long prompt (hundreds of image tokens) and are short. So all
groups of a micro-batch run as one sequence without padding, `[prompts ...][completions ...]`:

- the vision tower sees every image once, the language model every prompt token once;
- the positions of each completion start right after its prompt (mRoPE: largest position + 1);
- a completion attends to its own prompt and, causally, to itself. This equals the 4-D mask
  "causal and (same segment or key in prompt)", computed without its empty blocks: causal
  attention among prompts, then every completion against [its prompt's keys, its own keys];
- the first token of a completion is predicted by the prompt's last position, and gradients flow
  through the shared prompt.

`packing="group_flash"` computes the same through FlashAttention's kernels (`flash.py`), without a
mask, padding or gathered keys. `packing="group_flex"` hands the mask to FlexAttention: nothing is
padded or gathered, blocks of tokens that do not see each other are skipped, and training needs a
GPU.
`packing="off"` runs one right-padded row per completion, the plain way: the oracle of the tests.

Axes: B prompts (groups), N completions of all groups in order, P prompt tokens, T completion
tokens (longest), n tokens without padding, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from iad_r1.backbones import flash
from iad_r1.backbones.families import family_of
from iad_r1.backbones.flash import FlashPrompt
from iad_r1.errors import ConfigError, MismatchError
from iad_r1.objective.losses import Head, token_logprobs
from iad_r1.settings.training import Packing

ModelInputs = Mapping[str, Tensor]
"""The processor's own output for one prompt (batch of 1): `input_ids` [1, P] with expanded image
tokens, `pixel_values` and whatever else the family's processor returns."""
Completions = Sequence[Sequence[Sequence[int]]]
"""Token ids of every completion of every group, end of turn included, no padding."""

ATTENTION = "shared_prompt"
LOGITS = 2**26  # float32 logits computed at once: 256 MiB, 441 tokens of Qwen's vocabulary
ALIGNED = 8  # elements; SDPA's kernels on a GPU copy a mask whose rows begin elsewhere


@dataclass(frozen=True)
class Logprobs:
    """What a policy says about N completions, padded to the longest, T.

    logprob [N, T] f32 nats, with gradient; mask [N, T] bool, from the lengths; entropy [N, T]
    f32 nats, without gradient. Padding holds zeros.
    """

    logprob: Tensor
    mask: Tensor
    entropy: Tensor


def completion_logprobs(
    model: nn.Module,
    prompts: Sequence[ModelInputs],
    completions: Completions,
    *,
    packing: Packing = "group",
    vision: Sequence[Tensor | None] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    token_budget: int | None = None,
    entropy: bool = True,
    suppressed: Sequence[int] = (),
) -> Logprobs:
    """Log-probs of `completions[b][g]` after `prompts[b]`, group after group.

    vision        image features from `vision_features`, to share them between passes; None
                  encodes the images here (once per prompt, with gradient if the tower trains)
    chunk         tokens per block of the output layer, so [chunk, V] float32 is the most that
                  lives at once; None: as many as fit in 256 MiB
    token_budget  split whole groups into forwards of at most that many tokens. It bounds memory
                  without gradient; with gradient call `micro_batches` and backward each part
    suppressed    token ids the sampler may never draw; they get no probability here either, so
                  both speak of the same policy

    MismatchError if prompts, completions and features do not belong together.
    """
    _check(prompts, completions, vision)
    _refuse_suppressed(completions, suppressed)
    parts = [list(range(len(prompts)))]
    if token_budget is not None:
        parts = micro_batches(prompts, completions, token_budget, packing)
    bare = unwrap(model)
    head = _without(bare.lm_head, suppressed)
    results = []
    for part in parts:
        given = [prompts[i] for i in part]
        features = vision_features(bare, given) if vision is None else [vision[i] for i in part]
        batch = _Batch.build(bare, given, [completions[i] for i in part])
        if packing == "off":
            states = _row_hidden(bare, batch, features)
        else:
            states = _packed_hidden(bare, batch, features, _layout(bare, batch, packing))
        values = token_logprobs(
            states,
            head,
            batch.targets,
            temperature=temperature,
            chunk=chunk or max(1, LOGITS // bare.config.get_text_config().vocab_size),
            entropy=entropy,
        )
        results.append((batch, values))
    return _join(results)


def _without(head: nn.Module, suppressed: Sequence[int]) -> Head:
    """The output layer with the logits of those tokens at minus infinity."""
    if not suppressed:
        return head
    return lambda states: head(states).index_fill(
        -1, torch.tensor(suppressed, device=states.device), -torch.inf
    )


def micro_batches(
    prompts: Sequence[ModelInputs],
    completions: Completions,
    token_budget: int,
    packing: Packing = "group",
) -> list[list[int]]:
    """Indices of the groups of each forward: whole groups, in order, at most `token_budget`
    tokens each. A group larger than the budget gets a forward of its own."""
    parts: list[list[int]] = []
    room = 0
    for index, (prompt, group) in enumerate(zip(prompts, completions, strict=True)):
        copies = len(group) if packing == "off" else 1
        size = copies * prompt["input_ids"].shape[-1] + sum(map(len, group))
        if not parts or size > room:
            parts.append([])
            room = token_budget
        parts[-1].append(index)
        room -= size
    return parts


def vision_features(model: nn.Module, prompts: Sequence[ModelInputs]) -> list[Tensor | None]:
    """The image tokens' embeddings of each prompt, [image tokens, H] (None without an image).

    All images go through the tower together. Under a frozen tower call it once per batch inside
    `torch.no_grad()` and hand the result to every pass over that batch.
    """
    bare = unwrap(model)
    keys = family_of(bare.config.model_type).image_keys
    with_images = [i for i, p in enumerate(prompts) if p.get("pixel_values") is not None]
    features: list[Tensor | None] = [None] * len(prompts)
    if not with_images:
        return features
    device = _device(bare)
    merged = {
        key: _stacked([prompts[i][key] for i in with_images]).to(device)
        for key in keys
        if key in prompts[with_images[0]]
    }
    images = bare.model.get_image_features(**merged, return_dict=True).pooler_output
    flat = torch.cat(list(images))
    image_token = bare.config.image_token_id
    counts = [int((prompts[i]["input_ids"] == image_token).sum()) for i in with_images]
    if sum(counts) != flat.shape[0]:
        raise MismatchError(
            f"the prompts hold {sum(counts)} image tokens but the vision tower returned "
            f"{flat.shape[0]} features. Encode text and images with the same processor."
        )
    for i, part in zip(with_images, flat.split(counts), strict=True):
        features[i] = part
    return features


def check_packing(
    packing: Literal["auto"] | Packing, device: torch.device, dtype: torch.dtype
) -> None:
    """ConfigError if a model of `dtype` on `device` cannot be trained with this packing."""
    if packing == "group_flash" and device.type == "cuda" and dtype == torch.float32:
        raise ConfigError(
            "grpo.packing=group_flash needs engine.precision=bfloat16: FlashAttention's kernels do "
            "not compute in float32. Use grpo.packing=group, the same computation through SDPA."
        )
    if packing != "group_flex" or (device.type == "cuda" and find_spec("triton")):
        return
    why = (
        "it compiles its kernels with Triton, which is not installed"
        if device.type == "cuda"
        else f"it has no backward pass on this device ({device.type})"
    )
    raise ConfigError(
        f"grpo.packing=group_flex needs PyTorch's FlexAttention on a CUDA GPU: {why}. Use "
        "grpo.packing=group, the same computation through SDPA."
    )


def choose_packing(wanted: Literal["auto"] | Packing, model: nn.Module) -> tuple[Packing, str]:
    """What a run that asks for `wanted` is packed with, and the kernels or reasons, for people.

    `auto` is `group_flash` where a kernel of a GPU agrees with SDPA for the model's layers, else
    `group`. ConfigError if `group_flash` is asked for and no kernel does.
    """
    bare = unwrap(model)
    if wanted == "auto" and _device(bare).type == "cpu":
        return "group", "SDPA"
    if wanted in ("auto", "group_flash"):
        try:
            return "group_flash", _kernel(bare).name
        except ConfigError as error:
            if wanted != "auto":
                raise
            return "group", f"SDPA, because {error}"
    return wanted, "FlexAttention" if wanted == "group_flex" else "SDPA"


def _kernel(model: Any) -> flash.Kernel:
    """The kernel of FlashAttention for the layers of the language model."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    weight = model.get_input_embeddings().weight
    return flash.kernel_for(heads, text.num_key_value_heads, size, weight.dtype, weight.device)


def next_positions(model: nn.Module, prompts: Sequence[ModelInputs]) -> Tensor:
    """[B] The rotary position of the first token after each prompt (largest position + 1)."""
    bare = unwrap(model)
    return torch.stack([_prompt_positions(bare, prompt).max() + 1 for prompt in prompts])


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, a LoRA model is its own reference policy: the base weights without the adapter."""
    inner: Any = getattr(model, "module", model)
    if not hasattr(inner, "disable_adapter"):
        raise ConfigError(
            f"{type(inner).__name__} has no adapter to switch off, so it cannot be its own "
            "reference. Keep a frozen copy instead, or set tuning=lora."
        )
    with inner.disable_adapter():
        yield


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DDP, DeepSpeed and PEFT wrappers; adapters stay active."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


# --------------------------------------------------------------------------- one forward's data


@dataclass(frozen=True)
class _Batch:
    """Lengths and flat token ids of the groups of one forward, on the model's device."""

    prompt_ids: Tensor  # [sum P]
    prompt_positions: Tensor  # [3, sum P] with mRoPE, else [1, sum P]
    next_position: Tensor  # [B] the position after each prompt
    prompt_lengths: Tensor  # [B]
    group_of: Tensor  # [N] index of the prompt of each completion
    targets: Tensor  # [n] all completion tokens
    lengths: Tensor  # [N]
    offsets: Tensor  # [n] place of each token in its completion
    row_of: Tensor  # [n] completion of each token

    @staticmethod
    def build(model: Any, prompts: Sequence[ModelInputs], completions: Completions) -> _Batch:
        device = _device(model)
        ids = [prompt["input_ids"][0] for prompt in prompts]
        positions = [_prompt_positions(model, prompt) for prompt in prompts]
        rows = [row for group in completions for row in group]
        lengths = torch.tensor([len(row) for row in rows])
        return _Batch(
            prompt_ids=torch.cat(ids).to(device),
            prompt_positions=torch.cat(positions, dim=-1).to(device),
            next_position=torch.stack([p.max() + 1 for p in positions]).to(device),
            prompt_lengths=torch.tensor([i.numel() for i in ids], device=device),
            group_of=_repeat(torch.tensor([len(group) for group in completions])).to(device),
            targets=torch.tensor([token for row in rows for token in row], device=device),
            lengths=lengths.to(device),
            offsets=_offsets(lengths).to(device),
            row_of=_repeat(lengths).to(device),
        )


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device


def _prompt_positions(model: Any, prompt: ModelInputs) -> Tensor:
    """Rotary positions of one prompt, [3, P] (time, height, width) or [1, P], from 0."""
    ids = prompt["input_ids"]
    if not family_of(model.config.model_type).mrope:
        return torch.arange(ids.shape[-1])[None]
    # derived here: a prompt without them would silently get 1-D positions
    types = (ids == model.config.image_token_id).int()
    grid = prompt.get("image_grid_thw")
    return model.model.get_rope_index(ids, types, image_grid_thw=grid)[0][:, 0]


def _repeat(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts)


def _offsets(lengths: Tensor) -> Tensor:
    """0..len-1 for each segment, concatenated."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Concatenated over images; tiles per image (any-resolution families) padded to the most."""
    if values[0].dim() == 5:
        most = max(v.shape[1] for v in values)
        values = [torch.cat([v, v.new_zeros(v.shape[0], most - v.shape[1], *v.shape[2:])], 1)
                  for v in values]  # fmt: skip
    return torch.cat(list(values))


def _check(
    prompts: Sequence[ModelInputs],
    completions: Completions,
    vision: Sequence[Tensor | None] | None,
) -> None:
    if len(prompts) != len(completions):
        raise MismatchError(f"{len(prompts)} prompts but {len(completions)} groups of completions")
    if vision is not None and len(vision) != len(prompts):
        raise MismatchError(f"{len(prompts)} prompts but image features of {len(vision)}")
    for index, (prompt, group) in enumerate(zip(prompts, completions, strict=True)):
        if prompt["input_ids"].shape[0] != 1:
            raise MismatchError(
                f"prompt {index} holds {prompt['input_ids'].shape[0]} rows; give each prompt "
                "as its own processor output (batch of 1)"
            )
        kept = prompt.get("attention_mask")
        if kept is not None and not kept.bool().all():
            raise MismatchError(f"prompt {index} is padded; encode it alone, without padding")
        if not group or not all(group):
            raise MismatchError(f"group {index} has no completion, or one without any token")


def _refuse_suppressed(completions: Completions, suppressed: Sequence[int]) -> None:
    banned = set(suppressed)
    for index, group in enumerate(completions):
        found = banned.intersection(token for row in group for token in row)
        if found:
            raise MismatchError(
                f"group {index} holds the tokens {sorted(found)}, which the sampler must never "
                "draw: their probability is 0, so no loss exists. Suppress them in the sampler."
            )


def _join(results: Sequence[tuple[_Batch, tuple[Tensor, Tensor]]]) -> Logprobs:
    """Flat values of every part to one [N, T] table each."""
    width = max(int(batch.lengths.max()) for batch, _ in results)
    logps, masks, entropies = [], [], []
    for batch, (logp, entropy) in results:
        slots, rows = batch.row_of * width + batch.offsets, batch.lengths.numel()
        logps.append(_Pad.apply(logp, slots, rows * width).view(rows, width))
        entropies.append(_Pad.apply(entropy, slots, rows * width).view(rows, width))
        masks.append(torch.arange(width, device=logp.device) < batch.lengths[:, None])
    return Logprobs(torch.cat(logps), torch.cat(masks), torch.cat(entropies))


# ------------------------------------------------------------------------------ the two forwards


def _packed_hidden(
    model: Any, batch: _Batch, features: Sequence[Tensor | None], layout: Layout
) -> Tensor:
    """States that predict each completion token, [n, H], prompts computed once."""
    use_shared_prompt_attention(model)
    # the last token of a completion predicts nothing, so it is not fed
    fed = batch.offsets + 1 < batch.lengths[batch.row_of]
    embeds = torch.cat(
        [
            _prompt_embeds(model, batch.prompt_ids, features),
            model.get_input_embeddings()(batch.targets[fed]),
        ]
    )
    after = batch.next_position[batch.group_of[batch.row_of[fed]]] + batch.offsets[fed]
    positions = torch.cat(
        [batch.prompt_positions, after.expand(batch.prompt_positions.shape[0], -1)], dim=-1
    )
    output = model.model.language_model(
        inputs_embeds=embeds[None],
        position_ids=positions[:, None] if positions.shape[0] == 3 else positions,
        # taken as it is; empty, so a layer that ignored `shared_prompt` could not run
        attention_mask=torch.zeros(1, 1, 0, 0, dtype=torch.bool, device=embeds.device),
        shared_prompt=layout,
        use_cache=False,
    )
    return output.last_hidden_state[0].index_select(0, _predictors(batch))


def _predictors(batch: _Batch) -> Tensor:
    """Flat index of the state that predicts each completion token, [n]: the prompt's last
    position for a first token, the token before it for the others."""
    last = batch.prompt_lengths.cumsum(0) - 1
    fed = batch.lengths - 1
    starts = batch.prompt_ids.numel() + fed.cumsum(0) - fed
    inside = starts[batch.row_of] + batch.offsets - 1
    return torch.where(batch.offsets == 0, last[batch.group_of[batch.row_of]], inside)


def _row_hidden(model: Any, batch: _Batch, features: Sequence[Tensor | None]) -> Tensor:
    """States that predict each completion token, [n, H], from one right-padded row each."""
    prompts = _prompt_embeds(model, batch.prompt_ids, features).split(batch.prompt_lengths.tolist())
    places = batch.prompt_positions.split(batch.prompt_lengths.tolist(), dim=-1)
    answers = model.get_input_embeddings()(batch.targets).split(batch.lengths.tolist())
    groups = batch.group_of.tolist()
    rows = [torch.cat([prompts[g], answers[i]]) for i, g in enumerate(groups)]
    positions = [
        torch.cat([places[g], batch.next_position[g] + torch.arange(len(answers[i]),
                   device=places[g].device).expand(places[g].shape[0], -1)], dim=-1)
        for i, g in enumerate(groups)
    ]  # fmt: skip
    totals = batch.prompt_lengths[batch.group_of] + batch.lengths
    width = int(totals.max())
    pad = nn.utils.rnn.pad_sequence
    stacked = pad([p.T for p in positions], batch_first=True).permute(2, 0, 1)
    output = model.model.language_model(
        inputs_embeds=pad(rows, batch_first=True),
        position_ids=stacked if stacked.shape[0] == 3 else stacked[0],
        attention_mask=(torch.arange(width, device=totals.device) < totals[:, None]).long(),
        use_cache=False,
    )
    starts = batch.prompt_lengths[batch.group_of] - 1
    index = batch.row_of * width + starts[batch.row_of] + batch.offsets
    return output.last_hidden_state.flatten(0, 1).index_select(0, index)


def _prompt_embeds(model: Any, ids: Tensor, features: Sequence[Tensor | None]) -> Tensor:
    """Token embeddings of all prompts, [sum P, H], image tokens replaced by their features."""
    embeds = model.get_input_embeddings()(ids)
    images = [f for f in features if f is not None]
    places = (ids == model.config.image_token_id).nonzero().squeeze(-1)
    found = sum(f.shape[0] for f in images)
    if places.numel() != found:
        raise MismatchError(
            f"the prompts hold {places.numel()} image tokens but {found} image features were given"
        )
    if not images:
        return embeds
    return embeds.index_copy(0, places, torch.cat(images).to(embeds))


# --------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class SharedPrompt:
    """Where the prompts and completions of a packed sequence lie, for the attention layers.

    Flat order: all prompts, then the fed tokens of all completions. Attention alone works on
    padded blocks [B, P] and [N, T]; `*_slots` map flat tokens into them (None: nothing to pad).
    """

    n_prompt: int
    prompts: tuple[int, int]  # (B, P)
    completions: tuple[int, int]  # (N, T)
    prompt_slots: Tensor | None
    completion_slots: Tensor | None
    group_of: Tensor  # [N]
    bias: Tensor  # [N, 1, share * T, P + T]: 0 for the keys a completion token sees, else -inf

    @property
    def longest(self) -> int:
        """Tokens a completion token may have to see, itself included."""
        return self.prompts[1] + self.completions[1]

    @staticmethod
    def build(
        prompt_lengths: Tensor, lengths: Tensor, group_of: Tensor, share: int, dtype: torch.dtype
    ) -> SharedPrompt:
        """From the lengths of prompts [B] and completions as fed [N], and each one's prompt, for
        queries of `dtype` of which `share` heads read the same keys."""
        longest, width = int(prompt_lengths.max()), int(lengths.max())
        return SharedPrompt(
            n_prompt=int(prompt_lengths.sum()),
            prompts=(prompt_lengths.numel(), longest),
            completions=(lengths.numel(), width),
            prompt_slots=_slots(prompt_lengths, longest),
            completion_slots=_slots(lengths, width),
            group_of=group_of,
            bias=_bias(_visible(prompt_lengths[group_of], longest, width), share, dtype),
        )


@dataclass(frozen=True)
class FlexPrompt:
    """The same for FlexAttention, which works on the flat sequence."""

    mask: BlockMask  # [1, 1, n, n]: which keys each token sees
    longest: int

    @staticmethod
    def build(prompt_lengths: Tensor, lengths: Tensor, group_of: Tensor) -> FlexPrompt:
        """From the lengths of prompts [B] and completions as fed [N], and each one's prompt."""
        groups = _repeat(prompt_lengths)
        rows = _repeat(lengths)
        n = groups.numel() + rows.numel()
        return FlexPrompt(
            mask=flex_attention_mask(
                batch_size=1,
                q_length=n,
                kv_length=n,
                mask_function=_sees(
                    torch.cat([groups, prompt_lengths.numel() + rows]),
                    torch.cat([groups, group_of[rows]]),
                ),
                device=groups.device,
            ),
            longest=int(prompt_lengths.max() + lengths.max()),
        )


Layout = SharedPrompt | FlashPrompt | FlexPrompt


def _layout(model: Any, batch: _Batch, packing: Packing) -> Layout:
    """What the attention layers of one forward share; built once, whatever their number."""
    fed = batch.lengths - 1
    if packing == "group_flex":
        return FlexPrompt.build(batch.prompt_lengths, fed, batch.group_of)
    if packing == "group_flash":
        return FlashPrompt.build(batch.prompt_lengths, fed, batch.group_of, _kernel(model))
    text = model.config.get_text_config()
    share = text.num_attention_heads // text.num_key_value_heads
    dtype = model.get_input_embeddings().weight.dtype
    return SharedPrompt.build(batch.prompt_lengths, fed, batch.group_of, share, dtype)


def _sees(segment: Tensor, prompt: Tensor) -> Callable[..., Tensor]:
    """FlexAttention's mask function. A token sees what is not later than itself, in its own
    segment (a prompt or a completion) and in its prompt, itself a segment; both [n]."""

    def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = segment[query] == segment[key]
        return (key <= query) & (own | (prompt[query] == segment[key]))

    return sees


def _slots(lengths: Tensor, width: int) -> Tensor | None:
    """Row * width + offset of every token; None when all rows are full."""
    if bool((lengths == width).all()):
        return None
    cpu = lengths.cpu()
    return (_repeat(cpu) * width + _offsets(cpu)).to(lengths.device)


def _visible(prompt_lengths: Tensor, longest: int, width: int) -> Tensor:
    """[N, 1, T, P + T]: the prompt's real tokens, and of itself nothing that comes later."""
    device = prompt_lengths.device
    prompt = torch.arange(longest, device=device) < prompt_lengths[:, None]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    n = prompt_lengths.numel()
    return torch.cat(
        [prompt[:, None].expand(n, width, longest), causal.expand(n, width, width)], dim=-1
    )[:, None]


def _bias(visible: Tensor, share: int, dtype: torch.dtype) -> Tensor:
    """[N, 1, T, S] bool as the additive mask of `share` query heads in a row, [N, 1, share T, S].

    SDPA makes this of a boolean mask at every call, and keeps it for the backward pass: once for
    every layer. Made here, there is one for all of them.
    """
    rows, _, width, keys = visible.shape
    wide = -(-keys // ALIGNED) * ALIGNED
    bias = torch.full((rows, share, width, wide), -torch.inf, dtype=dtype, device=visible.device)[
        ..., :keys
    ]
    return bias.masked_fill_(visible, 0.0).flatten(1, 2)[:, None]


class _Pad(torch.autograd.Function):
    """Rows of x [n, ...] placed at distinct `slots` of a zero block [total, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(total, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grad.index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """The inverse of _Pad. `index_select` alone would add row by row in its backward pass,
    which is slow and needless for distinct slots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.total = x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.total, *grad.shape[1:]).index_copy_(0, slots, grad), None


def _padded(x: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """[n, heads, d] to [rows, heads, width, d]."""
    rows, width = shape
    block = x if slots is None else _Pad.apply(x, slots, rows * width)
    return block.reshape(rows, width, *x.shape[1:]).transpose(1, 2)


def _flat(x: Tensor, slots: Tensor | None) -> Tensor:
    """[rows, width, heads, d] to [n, heads, d]."""
    block = x.flatten(0, 1)
    return block if slots is None else _Unpad.apply(block, slots)


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prompt: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, and that of the layout where a packed sequence is running.

    query [1, heads, n, d], key and value [1, key heads, n, d] -> [1, n, heads, d]
    """
    if shared_prompt is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    s = shared_prompt
    _refuse_window(kwargs.pop("sliding_window", None), s.longest)
    if isinstance(s, FlexPrompt):
        return flex_attention_forward(module, query, key, value, s.mask, **kwargs)[0], None
    flat = [x[0].transpose(0, 1) for x in (query, key, value)]
    if isinstance(s, FlashPrompt):
        _refuse_dropout(kwargs.get("dropout", 0.0))
        return flash.attend(*flat, where=s, scale=kwargs.get("scaling"))[None], None
    q, k, v = (_padded(x[: s.n_prompt], s.prompt_slots, s.prompts) for x in flat)
    # right-padded, so plain causal attention never lets a real token see padding
    out, _ = sdpa_attention_forward(module, q, k, v, None, **kwargs)
    outputs = [_flat(out, s.prompt_slots)]
    if s.completions[1]:
        own_q, own_k, own_v = (
            _padded(x[s.n_prompt :], s.completion_slots, s.completions) for x in flat
        )
        keys = torch.cat([k.index_select(0, s.group_of), own_k], dim=2)
        values = torch.cat([v.index_select(0, s.group_of), own_v], dim=2)
        out = _attend(own_q, keys, values, s.bias, kwargs)
        outputs.append(_flat(out.transpose(1, 2), s.completion_slots))
    return torch.cat(outputs)[None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Masked attention, [N, heads, T, d]. Query heads that share a key head are folded into the
    length, so keys and values are never repeated."""
    rows, heads, width, size = q.shape
    share = heads // k.shape[1]
    folded = q.reshape(rows, k.shape[1], share * width, size)
    out = nn.functional.scaled_dot_product_attention(
        folded,
        k,
        v,
        attn_mask=bias,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    return out.reshape(rows, heads, width, size)


def _refuse_window(window: int | None, longest: int) -> None:
    if window is not None and longest > window:
        raise ConfigError(
            f"the model attends only to the last {window} tokens, but prompt and completion have "
            f"{longest}: the group-packed forward does not do sliding windows. Set packing=off."
        )


def _refuse_dropout(dropout: float) -> None:
    if dropout:
        raise ConfigError(
            f"the model drops {dropout:g} of its attention (attention_dropout in its config.json), "
            "which grpo.packing=group_flash does not do. Set grpo.packing=group."
        )


def use_shared_prompt_attention(model: nn.Module) -> None:
    """Let the language model's layers take `shared_prompt`; without one they run SDPA as before.

    It stays switched on, because gradient checkpointing runs layers again in the backward pass.
    """
    unwrap(model).model.language_model.config._attn_implementation = ATTENTION


AttentionInterface.register(ATTENTION, shared_prompt_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
