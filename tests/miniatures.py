"""Data sets in miniature, as they lie on disk, odd corners included."""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Folders of this name cannot be looked into, as those of another user."""
    scan = os.scandir

    def refused(folder: Any) -> Any:
        if Path(folder).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refused)


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


def like_mvtec(folder: Path, kind: str, suffix: str = ".png", masks: str = "{}_mask.png") -> None:
    """Two good pictures to train on, two of each kind to test on."""
    for i in range(2):
        picture(folder / "train" / "good" / f"{i:03}{suffix}")
        picture(folder / "test" / "good" / f"{i:03}{suffix}")
        picture(folder / "test" / kind / f"{i:03}{suffix}")
        mask(folder / "ground_truth" / kind / masks.format(f"{i:03}"))


def mpdd(root: Path) -> None:
    like_mvtec(root / "bracket_brown", "bend_and_parts_mismatch")
    like_mvtec(root / "tubes", "anomalous", masks="{}.png")


def dtd(root: Path) -> None:
    like_mvtec(root / "Woven_001", "bad")
    like_mvtec(root / "Woven_068", "bad")
    for path in (root / "Woven_068" / "test" / "good").iterdir():
        path.rename(path.with_name(f"mesh_{path.name}"))
    picture(root / "Woven_001" / "template" / "000.png")


def goodsad(root: Path) -> None:
    like_mvtec(root / "drink_can", "surface_damage", ".jpg", "{}.png")


def mvtec_loco(root: Path) -> None:
    like_mvtec(root / "pushpins", "logical_anomalies", masks="{}/000.png")
    mask(root / "pushpins" / "ground_truth" / "logical_anomalies" / "000" / "001.png")
    picture(root / "pushpins" / "validation" / "good" / "000.png")
    (root / "pushpins" / "defects_config.json").write_text("[]")


def mvtec_ad2(root: Path) -> None:
    for i in range(2):
        for part in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
            picture(root / "can" / part / f"{i:03}_regular.png")
        mask(root / "can/test_public/ground_truth/bad" / f"{i:03}_regular_mask.png")
        picture(root / "can" / "test_private" / f"{i:03}_regular.png")


def dagm(root: Path) -> None:
    for folder in (root / "Class2", root / "Class10" / "Class10"):
        for half, first in (("Test", 1), ("Train", 576)):
            rows = ["1"]
            for i in range(first, first + 4):
                picture(folder / half / f"{i:04}.PNG")
                flagged = i % 2
                if flagged:
                    mask(folder / half / "Label" / f"{i:04}_label.PNG")
                rows.append(
                    f"{i}\t{flagged}\t{i:04}.PNG\t0\t{i:04}_label.PNG" + "\t" * (1 - flagged)
                )
            (folder / half / "Label" / "Labels.txt").write_text("\n".join(rows))


def dagm_flat(root: Path) -> None:
    for i in range(2):
        for kind in ("good", "defect"):
            picture(root / "Class1" / kind / f"{i:04}.PNG")


def sdd(root: Path) -> None:
    like_mvtec(root, "defect")


def sdd_originals(root: Path) -> None:
    """Eight pictures 31 pixels high, so 24 parts, 10, 10 and 11 high: of one picture the middle
    part is defective, of another the upper two, of a third the last pixel."""
    marks = {(1, 0): (2, 12, 6, 15), (2, 1): (18, 8, 22, 12), (2, 3): (23, 30, 24, 31)}
    for item in (1, 2):
        for part in range(4):
            path = root / f"kos{item:02}" / f"Part{part}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([item, part]).integers(0, 255, (31, SIZE), np.uint8)
            Image.fromarray(noise).save(path)
            label = Image.new("L", (SIZE, 31))
            if (item, part) in marks:
                label.paste(255, marks[item, part])
            label.save(path.with_name(f"Part{part}_label.bmp"))


def ds_mvtec(root: Path) -> None:
    for category, colour in (("bottle", "rgb_mask"), ("grid", "rbg_mask")):
        for i in range(2):
            for kind in ("good", "broken"):
                picture(root / category / "image" / kind / f"{i:03}.png").with_suffix(
                    ".txt"
                ).write_text("a caption")
            mask(root / category / "mask" / "broken" / f"{i:03}_mask.png", 3)
            mask(root / category / colour / "broken" / f"{i:03}_{colour}.png", (0, 40, 0))
            picture(root.parent / "MVTec-AD" / category / "train" / "good" / f"{i:03}.png")


def real_iad(root: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    folder = root / "realiad_1024" / "toy_brick"

    def add(split: str, path: str, kind: str, masked: str | None) -> None:
        picture(folder / path)
        named = mask(folder / masked).relative_to(folder).as_posix() if masked else None
        rows[split].append(
            {"category": "toy_brick", "anomaly_class": kind, "image_path": path, "mask_path": named}
        )

    for i in range(3):
        add("train", f"OK/S000{i}/toy_brick_000{i}_OK_C1_20231027.jpg", "OK", None)
    add("test", "OK/S0009/toy_brick_0009_OK_C2_20231027.jpg", "OK", None)
    # a view that does not show the defect of its object
    add("test", "NG/HS/S0123/toy_brick_0123_NG_HS_C1_20231027.jpg", "OK", None)
    for view in (2, 3):
        stem = f"NG/HS/S0123/toy_brick_0123_NG_HS_C{view}_20231027"
        add("test", f"{stem}.jpg", "HS", f"{stem}.png")
    rows["test"][-1]["mask_path"] = "not/where/it/says.png"  # then the one beside the picture
    lists = root / "realiad_jsons" / "realiad_jsons"
    lists.mkdir(parents=True)
    (lists / "toy_brick.json").write_text(json.dumps({"meta": {"prefix": ""}, **rows}))


def visa(root: Path) -> None:
    for product in ("candle", "pcb1"):
        like_mvtec(root / product, "bad", ".JPG", "{}.png")


def listed(root: Path, name: str, rows: list[tuple[str, str, list[str]]]) -> None:
    """A list of the papers' test set: paths of pictures, answers and references."""
    content = {
        path: {
            "image_path": path,
            "conversation": [
                {"Question": "Are there any defects in the query image?", "Answer": answer,
                 "Options": {"A": "Yes.", "B": "No."}, "type": "Anomaly Detection"}
            ],
            "similar_templates": shown[:1],
            "random_templates": shown,
        }
        for path, answer, shown in rows
    }  # fmt: skip
    write_json(root / f"test_{name}_format.json", content)


def industrial_test(root: Path) -> None:
    """Two of its lists, one without references, in a folder of their own."""
    shown = [f"DTD/Woven_001/template/{i:03}.png" for i in range(2)]
    rows = {
        "DTD": [(f"DTD/Woven_001/test/{kind}/{i:03}.png", answer, shown)
                for kind, answer in (("good", "B"), ("bad", "A")) for i in range(2)],
        "SDD": [(f"SDD/test/{kind}/kos01_Part{i}_0.png", answer, [])
                for kind, answer in (("good", "B"), ("defect", "A")) for i in range(2)],
    }  # fmt: skip
    for name, some in rows.items():
        listed(root / "lists", name, some)
        for path, _, references in some:
            for file in (path, *references):
                picture(root / file)


def paper(root: Path) -> None:
    """The six benchmarks of the papers below one root, as IAD-R1's test set has them."""
    ds_mvtec(root / "DS-MVTec")
    visa(root / "VisA")
    mpdd(root / "MPDD")
    dagm_flat(root / "DAGM")
    dtd(root / "DTD")
    sdd(root / "SDD")


def asked(kind: str, answer: str, *options: str) -> dict[str, Any]:
    """A question of MMAD's."""
    letters = dict(zip("ABCDE", options, strict=False))
    return {"Question": f"{kind}?", "Answer": answer, "Options": letters, "type": kind}


def mmad(root: Path) -> Path:
    """A good and a defective picture of a product of each set, with questions of all subtasks about
    the defective one. The first set names masks from the product, the others from the folder in it.
    """
    places = {
        "DS-MVTec": ("bottle", "image/good/000.png", "image/broken/000.png"),
        "MVTec-LOCO": ("pushpins", "test/good/000.png", "test/logical_anomalies/000.png"),
        "VisA": ("candle", "test/good/0007.JPG", "test/bad/000.JPG"),
        "GoodsAD": ("drink_can", "test/good/000000.jpg", "test/opened/000000.jpg"),
    }
    found: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, dict[str, str]]] = {}
    for subset, (product, good, bad) in places.items():
        shown = [f"MVTec-AD/{product}/train/good/{i:03}.png" for i in range(4)]
        masked = mask(root / subset / product / Path(bad).parent / "masks" / "000_mask.png")
        start = root / subset / product / ("" if subset == "DS-MVTec" else Path(bad).parts[0])
        for path in shown:
            picture(root / path)
        for name, answer in ((good, "B"), (bad, "A")):
            path = f"{subset}/{product}/{name}"
            picture(root / path)
            turns = [asked("Anomaly Detection", answer, "Yes.", "No."),
                     asked("Object Structure", "C", "round", "flat", "hollow", "long")]  # fmt: skip
            if answer == "A":
                turns += [
                    asked(kind, "B", "scratch", "a dent", "a hole")
                    for kind in ("Defect Classification", "Defect Localization",
                                 "Defect Description", "Defect Analysis",
                                 "Object Classification", "Object Details")
                ]  # fmt: skip
            found[path] = {
                "image_path": path,
                "mask_path": masked.relative_to(start).as_posix() if answer == "A" else "",
                "conversation": turns,
                "similar_templates": shown[2:],
                "random_templates": shown,
            }
        known["MVTec" if subset == "DS-MVTec" else subset] = {
            product: {"scratch": f"A scratch on a {product}.", "good": f"A sound {product}."}
        }
    write_json(root / "mmad.json", found)
    write_json(root / "domain_knowledge.json", known)
    return root


def anomaly_r1(root: Path) -> Path:
    """Six lines to train on, two to validate; two questions about each picture."""
    for name, count in (("train", 6), ("val", 2)):
        rows = []
        for i in range(count):
            path = f"VisA/candle/test/bad/{name}{i // 2}.JPG"
            picture(root / "few-shot-dataset" / path)
            problem = f"Question {i}: which defect is it?\nA. scratch\nB. dent\nC. hole"
            rows.append({"image": path, "problem": problem, "solution": "ABC"[i % 3]})
        lines = "\n".join(map(json.dumps, rows))
        (root / f"fewshot-ad-{name}.jsonl").write_text(f"{lines}\n", encoding="utf-8")
    return root
