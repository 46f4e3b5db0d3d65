"""What was written, as files to train from: the two lists of Expert-AD, as IAD-R1 has them.

    sft.json          [{images, messages, product}]         for PA-SFT
    grpo.json         [{id, image, problem, solution, product}]   for SC-GRPO
    sft_1shot.json, grpo_1shot.json    the same, with a good picture before the one in question
    items.jsonl       where every item comes from, its facts, and its description
    rejected.jsonl    what was left out, and why
    dataset_info.json the entries of LLaMA-Factory
    arms/             the same pictures, for ablations

`product` is ours, the rest is theirs. Every file is replaced whole, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_r1 import prompts
from iad_r1.data.readers.expert_ad import PICTURE
from iad_r1.expert.choice import LISTS
from iad_r1.expert.facts import GRIDS
from iad_r1.expert.filters import Variety
from iad_r1.schema import parse
from iad_r1.store.run_folder import write_json, write_text

Row = Mapping[str, Any]  # a line of drafts.jsonl
PROMPT = "pa_sft"  # asks in PA-SFT
SHARES = (20, 40, 60, 80)  # percent of PA-SFT, each part of the next one
ANSWERS, COARSE = "answers", "coarse"  # arms: the answer alone; classes in the place of types


def arms(grid: str) -> list[str]:
    """The arms whose texts are other ones: classes for types, and the other grids."""
    return [COARSE, *(str(other) for other in GRIDS if str(other) != grid)]


def rows(file: Path) -> Iterator[Row]:
    """The lines of a file, one at a time."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def sft_record(row: Row, shots: int, target: str) -> dict[str, Any]:
    """An item of PA-SFT."""
    asked = prompts.conversation(PROMPT, shots=shots).text.replace("{image}", PICTURE)
    said = [("user", asked), ("assistant", target)]
    return {
        "images": _pictures(row, shots),
        "messages": [{"role": role, "content": content} for role, content in said],
        "product": row["product"],
    }


def grpo_record(row: Row, shots: int, target: str) -> dict[str, Any]:
    """An item of SC-GRPO: of its answer, the tags behind the reasoning alone."""
    return {
        "id": row["id"],
        "image": _pictures(row, shots),
        "problem": prompts.QUERY_IMAGE,
        "solution": target.partition("</think>")[2],
        "product": row["product"],
    }


RECORDS = {"sft": sft_record, "grpo": grpo_record}


def _pictures(row: Row, shots: int) -> str | list[str]:
    return [row["reference"]["picture"], row["picture"]] if shots else row["picture"]


def file_name(part: str, shots: int) -> str:
    """Of a list."""
    return f"{part}{'_1shot' * shots}.json"


def write(drafts: Path, folder: Path, shots: Sequence[int], grid: str, with_arms: bool) -> None:
    """All files but the data card, from the lines of `drafts`, in their order."""
    folder.mkdir(exist_ok=True)
    for part in LISTS:
        for number in shots:
            records = [
                RECORDS[part](row, number, row["target"]) for row in kept(drafts) if _in(row, part)
            ]
            write_json(folder / file_name(part, number), records)
    _write_lines(folder / "items.jsonl", (_item(row) for row in kept(drafts)))
    left_out = (row for row in rows(drafts) if row["rejected"])
    _write_lines(folder / "rejected.jsonl", left_out)
    write_json(folder / "dataset_info.json", dataset_info(shots))
    if with_arms:
        _write_arms(drafts, folder / "arms", grid)


def kept(drafts: Path) -> Iterator[Row]:
    """The lines of what is left."""
    return (row for row in rows(drafts) if not row["rejected"])


def _in(row: Row, part: str) -> bool:
    return row["list"] == part


def _item(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("rejected", "arms")}


def _write_lines(file: Path, found: Iterable[Row]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
    write_text(file, "".join(lines))


def _write_arms(drafts: Path, folder: Path, grid: str) -> None:
    """The same pictures as in `sft.json` and `grpo.json`, zero-shot, in the same order."""
    folder.mkdir(exist_ok=True)
    for arm in arms(grid):
        for part in LISTS:
            found = [RECORDS[part](r, 0, r["arms"][arm]) for r in kept(drafts) if _in(r, part)]
            write_json(folder / f"{part}_{arm}.json", found)
    learned = [row for row in kept(drafts) if _in(row, "sft")]
    short = [sft_record(row, 0, _answer_alone(row["target"])) for row in learned]
    write_json(folder / f"sft_{ANSWERS}.json", short)
    whole = [sft_record(row, 0, row["target"]) for row in learned]
    for share in SHARES:
        write_json(folder / f"sft_{share}.json", whole[: round(len(whole) * share / 100)])


def _answer_alone(target: str) -> str:
    return f"<answer>{parse(target).answer}</answer>"


def dataset_info(shots: Sequence[int]) -> dict[str, Any]:
    """The entries of LLaMA-Factory's `dataset_info.json` for the lists of PA-SFT."""
    return {
        f"expert_ad_sft{'_1shot' * number}": {
            "file_name": file_name("sft", number),
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        }
        for number in shots
    }


# --- what there is to say of them ----------------------------------------------------------------


def found(drafts: Path) -> dict[str, Any]:
    """Counts of what is kept by list and label, of what is left out by reason, and of pictures that
    are named by their whole path (`outside`); and how varied the texts are, by label."""
    counts: dict[str, dict[str, int]] = {part: {"good": 0, "defective": 0} for part in LISTS}
    types: dict[str, int] = {}
    products: dict[str, int] = {}
    rejected: dict[str, int] = {}
    outside = 0
    varied = {"all": Variety(), "good": Variety(), "defective": Variety()}
    for row in rows(drafts):
        if row["rejected"]:
            reason = row["rejected"][0]["reason"]
            rejected[reason] = rejected.get(reason, 0) + 1
            continue
        label = "good" if row["location"] is None else "defective"
        counts[row["list"]][label] += 1
        outside += row["picture"].startswith("/")
        products[row["product"]] = products.get(row["product"], 0) + 1
        if row["type"] is not None:
            types[row["type"]] = types.get(row["type"], 0) + 1
        for name in ("all", label):
            varied[name].add(row["reasoning"])
    return {
        "kept": counts,
        "rejected": _largest_first(rejected),
        "products": _largest_first(products),
        "types": _largest_first(types),
        "outside": outside,
        "variety": {name: one.found() for name, one in varied.items()},
    }


def _largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
