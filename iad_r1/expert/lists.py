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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from iad_r1 import prompts
from iad_r1.data.readers.expert_ad import PICTURE
from iad_r1.expert.choice import LISTS
from iad_r1.expert.facts import GRIDS
from iad_r1.expert.filters import Variety
from iad_r1.schema import parse
from iad_r1.store.run_folder import replacing, write_json

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


def write(
    drafts: Path, folder: Path, shots: Sequence[int], grid: str, with_arms: bool
) -> dict[str, Any]:
    """All files but the data card, from the lines of `drafts`, in their order; returns what `Found`
    says of them."""
    folder.mkdir(exist_ok=True)
    records: dict[str, list[dict[str, Any]]] = {
        file_name(part, number): [] for part in LISTS for number in shots
    }
    others = arms(grid) if with_arms else []
    records |= {_arm_name(part, arm): [] for arm in others for part in LISTS}
    learned: list[Row] = []  # of PA-SFT, for the arms that are parts of it
    found = Found()
    with (
        replacing(folder / "items.jsonl") as items,
        replacing(folder / "rejected.jsonl") as left_out,
    ):
        for row in rows(drafts):
            found.add(row)
            if row["rejected"]:
                _write_line(left_out, row)
                continue
            _write_line(items, _item(row))
            part, record = row["list"], RECORDS[row["list"]]
            for number in shots:
                records[file_name(part, number)].append(record(row, number, row["target"]))
            for arm in others:
                records[_arm_name(part, arm)].append(record(row, 0, row["arms"][arm]))
            if with_arms and part == "sft":
                learned.append(sft_record(row, 0, row["target"]))
    if with_arms:
        records |= _parts(learned)
    for name, of_file in records.items():
        write_json(folder / name, of_file)
    write_json(folder / "dataset_info.json", dataset_info(records))
    return found.told()


def _item(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("rejected", "arms")}


def _write_line(file: TextIO, row: Row) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _arm_name(part: str, arm: object) -> str:
    """Of a list of the same pictures as in `sft.json` or `grpo.json`, zero-shot, in that order."""
    return f"arms/{part}_{arm}.json"


def _parts(learned: Sequence[Row]) -> dict[str, list[Any]]:
    """The arms of PA-SFT that say less: the answers alone, and the first items."""
    found: dict[str, list[Any]] = {
        _arm_name("sft", share): list(learned[: round(len(learned) * share / 100)])
        for share in SHARES
    }
    found[_arm_name("sft", ANSWERS)] = [_short(record) for record in learned]
    return found


def _short(record: Row) -> dict[str, Any]:
    """An item of PA-SFT that is answered without reasoning."""
    asked, said = record["messages"]
    return {**record, "messages": [asked, {**said, "content": _answer_alone(said["content"])}]}


def _answer_alone(target: str) -> str:
    return f"<answer>{parse(target).answer}</answer>"


def dataset_info(files: Iterable[str]) -> dict[str, Any]:
    """The entries of LLaMA-Factory's `dataset_info.json` for those of the lists that PA-SFT takes,
    their arms among them."""
    return {
        f"expert_ad_{Path(file).stem}": {
            "file_name": file,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        }
        for file in files
        if Path(file).name.startswith("sft")
    }


# --- what there is to say of them ----------------------------------------------------------------


class Found:
    """Counts of what is kept by list and label, of what is left out by reason, and of pictures that
    are named by their whole path (`outside`); and how varied the texts are, by label."""

    def __init__(self) -> None:
        self.kept = {part: {"good": 0, "defective": 0} for part in LISTS}
        self.rejected, self.products, self.types = Counter[str](), Counter[str](), Counter[str]()
        self.outside = 0
        self.varied = {"all": Variety(), "good": Variety(), "defective": Variety()}

    def add(self, row: Row) -> None:
        """Count one line of `drafts.jsonl`."""
        if row["rejected"]:
            self.rejected[row["rejected"][0]["reason"]] += 1
            return
        label = "good" if row["location"] is None else "defective"
        self.kept[row["list"]][label] += 1
        self.outside += row["picture"].startswith("/")
        self.products[row["product"]] += 1
        if row["type"] is not None:
            self.types[row["type"]] += 1
        for name in ("all", label):
            self.varied[name].add(row["reasoning"])

    def told(self) -> dict[str, Any]:
        """All of it, for `summary.json`."""
        return {
            "kept": self.kept,
            "rejected": _largest_first(self.rejected),
            "products": _largest_first(self.products),
            "types": _largest_first(self.types),
            "outside": self.outside,
            "variety": {name: one.found() for name, one in self.varied.items()},
        }


def _largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
