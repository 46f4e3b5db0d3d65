"""A folder of tasks for lmms-eval (`--include_path <folder>`), one for every split.

    iad_r1_<split>.yaml, iad_r1_<split>.jsonl, utils.py, iad_r1_reading.py, images/
    iad_r1.yaml          all of them, where there are several

Pictures are linked by their absolute paths, or lie in `images/`. The YAML names its data by their
absolute path, as `datasets` asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from iad_r1 import schema
from iad_r1.store.run_folder import write_text
from iad_r1.suites import items, lmms_task
from iad_r1.types import Sample

GROUP = "iad_r1"
METRICS: Mapping[str, bool] = {  # whether more is better
    "balanced_accuracy": True, "miss_rate": False, "overkill_rate": False, "mmad_average": True,
    "accuracy": True, "invalid_rate": False,
}  # fmt: skip
# modules of ours that import nothing of ours where they will lie
COPIED = (
    (
        lmms_task, "utils.py", "from iad_r1.schema import",
        "import sys\n\nsys.path.insert(0, str(Path(__file__).parent))\nfrom iad_r1_reading import",
    ),
    (
        schema, "iad_r1_reading.py", "from iad_r1.errors import ConfigError\n",
        "class ConfigError(ValueError):\n    pass\n",
    ),
)  # fmt: skip


def write(
    folder: Path,
    splits: Mapping[str, Sequence[Sample]],
    asking: items.Asking,
    pictures: items.Pictures,
    max_tokens: int,
) -> list[str]:
    """Fill a folder; returns the names of its tasks, the group first where there is one."""
    store, tasks = items.Store(folder, pictures), []
    for split, samples in splits.items():
        name = items.task_name(split)
        lines = [_line(item, store) for item in items.items(samples, asking)]
        data = write_text(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        options = samples[0].question.options is not None
        write_text(folder / f"{name}.yaml", _task(name, data, options, max_tokens))
        tasks.append(name)
    if len(tasks) > 1:
        listed = "".join(f"- {name}\n" for name in tasks)
        write_text(folder / f"{GROUP}.yaml", f"group: {GROUP}\ntask:\n{listed}")
        tasks.insert(0, GROUP)
    for module, name, ours, theirs in COPIED:
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert text.count(ours) == 1, f"{module.__name__} has changed its imports"
        write_text(folder / name, text.replace(ours, theirs))
    return tasks


def _line(item: items.Item, store: items.Store) -> str:
    sample = item.sample
    found = {
        "id": sample.id,
        "product": sample.product,
        "group": item.group,
        "pictures": [_relative(store.path(each), store.folder) for each in item.pictures],
        "prompt": item.words.text,
        "system": item.words.system or "",
        "text": items.text(item.words),
        "options": json.dumps(sample.question.options and dict(sample.question.options)),
        "target": sample.solution.answer,
    }
    return json.dumps(found, ensure_ascii=False)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _task(name: str, data: Path, options: bool, max_tokens: int) -> str:
    counted = lmms_task.metrics(options)
    metrics = "".join(
        f"- metric: {metric}\n"
        f"  aggregation: !function utils.{metric}\n"
        f"  higher_is_better: {json.dumps(METRICS[metric])}\n"
        for metric in counted
    )
    return (
        f"task: {name}\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(data.absolute()))}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "doc_to_visual: !function utils.doc_to_visual\n"
        "doc_to_text: !function utils.doc_to_text\n"
        "doc_to_messages: !function utils.doc_to_messages\n"
        "doc_to_target: target\n"
        "process_results: !function utils.process_results\n"
        f"generation_kwargs:\n  max_new_tokens: {max_tokens}\n  temperature: 0\n"
        "  do_sample: false\n  until: []\n"  # an empty line ends no reasoning
        f"metric_list:\n{metrics}"
    )
