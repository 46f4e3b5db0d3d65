"""Widths and depths of a vision-language model, read from its `config.json` alone.

What `memory.py` needs to predict bytes: how many parameters each part has, and how many tokens and
patches a picture becomes. Standard library only; the counts equal those of transformers' classes
and the picture arithmetic that of its processors (both are tested).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iad_r1.errors import ConfigError

Values = Mapping[str, Any]

WITH_ATTENTION_BIAS = ("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text")
QWEN_MIN_PIXELS = 56 * 56  # preprocessor_config.json of Qwen2-VL and Qwen2.5-VL
QWEN_MAX_PIXELS = 16384 * 28 * 28
QWEN_THINNEST = 200  # times that the sides of a picture may differ
INTERNVL_TILES = 12  # max_dynamic_patch of InternVL2.5, and a thumbnail beside more than one


@dataclass(frozen=True)
class Text:
    """The language model: decoder layers with grouped-query attention and a gated MLP."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_dim: int
    vocab: int
    tied: bool  # whether the output layer is the embedding
    bias: bool  # of queries, keys and values

    @property
    def attention(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys of a token; its values are as wide."""
        return self.key_heads * self.head_dim

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        h, f = self.hidden, self.intermediate
        return [(h, self.attention), (h, self.keys), (h, self.keys), (self.attention, h),
                (h, f), (h, f), (f, h)]  # fmt: skip

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        bias = self.attention + 2 * self.keys if self.bias else 0
        return sum(i * o for i, o in self.linears) + bias + 2 * self.hidden

    @property
    def table(self) -> int:
        """Parameters of the embedding, and of the output layer where it is another."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, embedding and output layer included."""
        tables = self.table * (1 if self.tied else 2)
        return self.layers * self.layer + tables + self.hidden


@dataclass(frozen=True)
class Vision:
    """The vision tower with its projector (merger, connector).

    `kind` is qwen2_vl, qwen2_5_vl, clip, siglip or internvl. `inputs` are the values of one patch,
    `kept` the layers whose output is used (the last is computed for nothing in CLIP towers), `side`
    the patches along a tile of a tower of fixed size, `merge` the patches along a token.
    """

    kind: str
    layers: int
    kept: int
    hidden: int
    intermediate: int
    heads: int
    inputs: int
    out: int
    side: int = 0
    merge: int = 1
    newline: bool = False

    @property
    def class_token(self) -> int:
        return 1 if self.kind in ("clip", "internvl") else 0

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        v, g = self.hidden, self.intermediate
        attention = 4 * (v * v + v)
        if self.kind == "qwen2_5_vl":  # RMS norms and a gated MLP
            return attention + 2 * v + 3 * v * g + 2 * g + v
        scales = 2 * v if self.kind == "internvl" else 0
        return attention + 4 * v + 2 * v * g + g + v + scales

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(in, out) of the two linear layers of the projector."""
        wide = self.hidden * self.merge**2
        inner = wide if self.kind.startswith("qwen") else self.out
        return [(wide, inner), (inner, self.out)]

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one layer."""
        v, g = self.hidden, self.intermediate
        if self.kind == "qwen2_5_vl":
            return [(v, 3 * v), (v, v), (v, g), (v, g), (g, v)]
        qkv = [(v, 3 * v)] if self.kind == "qwen2_vl" else [(v, v)] * 3
        return [*qkv, (v, v), (v, g), (g, v)]

    @property
    def projector(self) -> int:
        """Parameters of what maps features to the language model's width."""
        wide = self.hidden * self.merge**2
        norm = {"qwen2_vl": 2 * self.hidden, "qwen2_5_vl": self.hidden, "internvl": 2 * wide}
        maps = sum(i * o + o for i, o in self.maps)
        return norm.get(self.kind, 0) + maps + (self.out if self.newline else 0)

    @property
    def stem(self) -> int:
        """Parameters of patch and position embeddings and of the norms around the layers."""
        v = self.hidden
        if self.kind.startswith("qwen"):
            return v * self.inputs
        positions = (self.side**2 + self.class_token) * v
        rest = {
            "clip": v + 2 * v + 2 * v,  # class token, norms before and after
            "siglip": v + 2 * v,  # bias of the patch embedding, norm after
            "internvl": v + v,  # bias of the patch embedding, class token
        }
        return v * self.inputs + positions + rest[self.kind]

    @property
    def tower(self) -> int:
        """Parameters of everything but the projector."""
        return self.layers * self.layer + self.stem


@dataclass(frozen=True)
class Architecture:
    """One model: `model_type` of its configuration, its parts and how it cuts up pictures."""

    model_type: str
    text: Text
    vision: Vision
    pinpoints: tuple[tuple[int, int], ...] = ()  # (height, width) pixels of allowed tilings
    max_tiles: int = 0  # of OneVision (anyres_max_9) and InternVL

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of each part."""
        vision = self.vision
        return {
            "language": self.text.parameters,
            "vision": vision.tower,
            "projector": vision.projector,
        }

    @property
    def parameters(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Picture:
    """What one picture costs: rows in the vision tower, and tokens in the language model."""

    patches: int
    tokens: int


# --------------------------------------------------------------------------- reading


def widths_of(config: Values) -> Architecture:
    """The architecture in the content of a `config.json` (as published, or as transformers saves
    it). ConfigError if its `model_type` is none that is known here."""
    kind = config["model_type"]
    if kind not in ("qwen2_vl", "qwen2_5_vl", "llava", "llava_next", "llava_onevision", "internvl"):
        raise ConfigError(
            f"memory of a model of type {kind!r} cannot be predicted; known are qwen2_vl, "
            "qwen2_5_vl, llava, llava_next, llava_onevision and internvl."
        )
    text = _text(config)
    tiles = 0
    if kind == "llava_onevision":
        tiles = int(str(config.get("vision_aspect_ratio", "anyres_max_9")).rpartition("_")[2])
    return Architecture(
        model_type=kind,
        text=text,
        vision=_vision(config, text.hidden),
        pinpoints=tuple((h, w) for h, w in config.get("image_grid_pinpoints", ())),
        max_tiles=INTERNVL_TILES if kind == "internvl" else tiles,
    )


def _text(config: Values) -> Text:
    text = config.get("text_config") or config
    heads = text["num_attention_heads"]
    return Text(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=heads,
        key_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        vocab=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        bias=text.get("model_type", config["model_type"]) in WITH_ATTENTION_BIAS,
    )


def _vision(config: Values, out: int) -> Vision:
    vision = config["vision_config"]
    return _qwen(config["model_type"], vision) if "depth" in vision else _fixed(config, vision, out)


def _qwen(kind: str, vision: Values) -> Vision:
    windowed = kind == "qwen2_5_vl"
    hidden = vision["hidden_size"] if windowed else vision["embed_dim"]
    channels = vision.get("in_chans", vision.get("in_channels", 3))
    return Vision(
        kind=kind,
        layers=vision["depth"],
        kept=vision["depth"],
        hidden=hidden,
        intermediate=vision["intermediate_size"] if windowed else vision["mlp_ratio"] * hidden,
        heads=vision["num_heads"],
        inputs=channels * vision["temporal_patch_size"] * vision["patch_size"] ** 2,
        out=vision["out_hidden_size"] if windowed else vision["hidden_size"],
        merge=vision["spatial_merge_size"],
    )


def _fixed(config: Values, vision: Values, out: int) -> Vision:
    """A tower that reads tiles of one size."""
    kinds = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}
    layers, layer = vision["num_hidden_layers"], config.get("vision_feature_layer", -1)
    patch, size = _first(vision["patch_size"]), _first(vision["image_size"])
    internvl = config["model_type"] == "internvl"
    return Vision(
        kind=kinds.get(vision["model_type"], "internvl"),
        layers=layers,
        kept=layers + 1 + layer if isinstance(layer, int) and layer < 0 else layers,
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        heads=vision["num_attention_heads"],
        inputs=vision.get("num_channels", 3) * patch**2,
        out=out,
        side=size // patch,
        merge=round(1 / config["downsample_ratio"]) if internvl else 1,
        newline=config["model_type"] in ("llava_next", "llava_onevision"),
    )


def _first(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


# --------------------------------------------------------------------------- pictures


def picture(model: Architecture, width: int, height: int, max_pixels: int | None) -> Picture:
    """What a picture of `width` x `height` pixels becomes, as the processor of the model has it.

    `max_pixels` limits it as `Backbone.limit_pixels` does; None: as the published processor does.
    """
    vision = model.vision
    if vision.kind.startswith("qwen"):
        limit = max_pixels or QWEN_MAX_PIXELS
        rows, columns = _tokens(height, width, 14 * vision.merge, limit)
        return Picture(rows * columns * vision.merge**2, rows * columns)
    per_tile = vision.side**2 + vision.class_token
    if model.model_type == "internvl":
        side = vision.side * 14
        most = model.max_tiles
        if max_pixels is not None:
            most = max(1, min(max_pixels // side**2, most))
        tiles = _internvl_tiles(width, height, side, most)
        return Picture(tiles * per_tile, tiles * (vision.side // vision.merge) ** 2)
    if not model.pinpoints:
        return Picture(per_tile, vision.side**2)
    tiles, tokens = _any_resolution(model, height, width, max_pixels)
    return Picture(tiles * per_tile, tokens)


def _tokens(height: int, width: int, unit: int, max_pixels: int) -> tuple[int, int]:
    """Rows and columns of tokens, as `Backbone.fit` has them: of strips that the processor refuses
    the shorter side is stretched by whole tokens."""
    while True:
        if max(height, width) > QWEN_THINNEST * min(height, width):
            shorter = unit * math.ceil(max(height, width) / (QWEN_THINNEST * unit))
            height, width = max(height, shorter), max(width, shorter)
        rows, columns = _multiples(height, width, unit, max_pixels)
        height, width = unit * rows, unit * columns
        is_thin = max(rows, columns) > QWEN_THINNEST * min(rows, columns)
        if height * width <= max_pixels and not is_thin:
            return rows, columns


def _multiples(height: int, width: int, unit: int, max_pixels: int) -> tuple[int, int]:
    """Rows and columns of tokens: both sides to multiples of `unit`, within the limits of area
    (`smart_resize` of Qwen2-VL)."""
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels) * unit
        return max(1, math.floor(height / shrink)), max(1, math.floor(width / shrink))
    if rows * columns * unit**2 < QWEN_MIN_PIXELS:
        grow = math.sqrt(QWEN_MIN_PIXELS / (height * width)) / unit
        return math.ceil(height * grow), math.ceil(width * grow)
    return rows, columns


def _any_resolution(
    model: Architecture, height: int, width: int, max_pixels: int | None
) -> tuple[int, int]:
    """Tiles, overview included, and tokens (`_get_unpadded_features` of the two processors)."""
    side, best = model.vision.side, _best_resolution(model, height, width, max_pixels)
    tile = math.gcd(*(edge for point in model.pinpoints for edge in point))
    rows, columns = side * (best[0] // tile), side * (best[1] // tile)
    tiles = (best[0] // tile) * (best[1] // tile) + 1
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    if model.max_tiles:
        ratio = math.sqrt(rows * columns / (model.max_tiles * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return tiles, side**2 + rows * columns + rows  # a newline ends every row


def _best_resolution(
    model: Architecture, height: int, width: int, max_pixels: int | None
) -> tuple[int, int]:
    """The tiling within the limit that keeps most of the picture and wastes least
    (`select_best_resolution`); the smallest if none is within it."""
    small = [point for point in model.pinpoints if math.prod(point) <= (max_pixels or math.inf)]

    def merit(choice: tuple[int, int]) -> tuple[int, int]:
        scale = min(choice[1] / width, choice[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - choice[0] * choice[1]

    return max(small or [min(model.pinpoints, key=math.prod)], key=merit)


def _internvl_tiles(width: int, height: int, side: int, most: int) -> int:
    """Tiles of the arrangement nearest to the picture's shape, and a thumbnail beside several
    (`get_optimal_tiled_canvas`; it tries few tiles first, columns before rows)."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        enough = width * height > 0.5 * side**2 * columns * rows
        if apart < nearest or (apart == nearest and enough):
            best, nearest = (columns, rows), apart
    tiles = best[0] * best[1]
    return tiles + (1 if tiles > 1 else 0)


# --------------------------------------------------------------------------- what is seen

TINY_CELL = 32  # pixels on a side that are one token of the tiny model


@dataclass(frozen=True)
class Shown:
    """A picture as a model sees it. It takes `tokens` in a prompt. Scaled, it has `pixels`, which
    `fine` tokens cover once; what else there is shows it smaller. `cut` is the share of it that
    is cut off."""

    tokens: int
    pixels: float
    fine: float
    cut: float = 0.0


def shown(model: Architecture, width: int, height: int, max_pixels: int | None) -> Shown:
    """What a picture of `width` x `height` pixels is scaled to, within the limits of `picture`."""
    vision, tokens = model.vision, picture(model, width, height, max_pixels).tokens
    if vision.kind.startswith("qwen"):
        return Shown(tokens, tokens * (14 * vision.merge) ** 2, tokens)
    side = 14 * vision.side
    if model.model_type == "internvl":
        of_tile = (vision.side // vision.merge) ** 2
        tiles = tokens // of_tile
        tiles -= tiles > 1  # the thumbnail
        return Shown(tokens, tiles * side**2, tiles * of_tile)
    if not model.pinpoints:  # the middle square of a picture whose shorter side fits
        shorter, longer = sorted((width, height))
        pixels = width * height * (side / shorter) ** 2
        return Shown(tokens, pixels, pixels / 14**2, 1 - shorter / longer)
    best = _best_resolution(model, height, width, max_pixels)
    scale = min(best[0] / height, best[1] / width)
    return Shown(tokens, width * height * scale**2, tokens - vision.side**2)


def shown_tiny(width: int, height: int, max_pixels: int) -> Shown:
    """The same of the tiny model."""
    rows, columns = _multiples(height, width, TINY_CELL, max_pixels)
    return Shown(rows * columns, rows * columns * TINY_CELL**2, rows * columns)
