"""Data sets in miniature, as they lie on disk."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 24
QUESTION = "Are there any defects in the query image?"
GOOD = "<think>The surface matches. It is fine.</think><answer>No</answer>"
SCRATCHED = (
    "<think>A thin line crosses the lid, Top right.</think><location>Top right</location>"
    "<type>score mark</type><answer>Yes</answer>"
)


def picture(path: Path) -> Path:
    """Noise of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
    Image.fromarray(noise.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(path)
    return path


def mask(path: Path, value: int | tuple[int, int, int] = 255) -> Path:
    """A mark at the top right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = Image.new("L" if isinstance(value, int) else "RGB", (SIZE, SIZE))
    marked.paste(value, (18, 1, 22, 5))
    marked.save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def view(product: str, number: int, kind: str = "OK", camera: int = 1) -> str:
    """The path of a view, as Real-IAD has it."""
    folder = "OK" if kind == "OK" else f"NG/{kind}"
    code = "OK" if kind == "OK" else f"NG_{kind}"
    name = f"{product}_{number:04}_{code}_C{camera}_20231027120000.jpg"
    return f"realiad_1024/{product}/{folder}/S{number:04}/{name}"


def sft_row(images: str | list[str], target: str, asked: str = QUESTION) -> dict[str, Any]:
    shown = [images] if isinstance(images, str) else images
    said = f"<image>\n{asked}"
    if len(shown) > 1:
        said = f"Here is a normal picture: <image> And the query image: {said}"
    return {
        "images": images,
        "messages": [
            {"role": "user", "content": said},
            {"role": "assistant", "content": target},
        ],
    }


def expert_ad(root: Path) -> Path:
    """Two products, four good and four scratched objects of each, half of them in each list; the
    last two items of a list bring a reference."""
    sft: list[dict[str, Any]] = []
    rl: list[dict[str, Any]] = []
    for product in ("audiojack", "toy_brick"):
        for number in range(8):
            defective = number % 2 == 1
            path = view(product, number, "HS" if defective else "OK")
            picture(root / path)
            shown = [view(product, 90), path] if number >= 6 else path
            if number % 4 < 2:
                sft.append(sft_row(shown, SCRATCHED if defective else GOOD))
            tags = (SCRATCHED if defective else GOOD).partition("</think>")[2]
            if number % 4 >= 2:
                row = {"id": len(rl), "image": shown, "problem": QUESTION, "solution": tags}
                rl.append(row)
        picture(root / view(product, 90))
        sft.append(sft_row([view(product, 90), view(product, 0)], GOOD))
    write_json(root / "PA-SFT" / "Expert_AD_Stage_1.json", sft)
    write_json(root / "SC-GRPO" / "Expert_AD_Stage_2.json", rl)
    return root
