"""MLflow: into a folder beside the run folders, or to a server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from iad_r1.settings.tracking import MlflowTracking
from iad_r1.store import metrics
from iad_r1.store.products import Product, run_name
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.trackers import (
    THUMBNAIL,
    Row,
    evaluated,
    result_columns,
    side_by_side,
    trained,
)

ID = "mlflow_run_id"  # in the run folder: a run that goes on is the same run
LONGEST = 500  # characters of a setting; longer ones stand in config.json alone
NUMBERS, SETTINGS = 1000, 100  # in a call, MLflow's limits


def open_backend(
    settings: MlflowTracking, folder: Path, config: Mapping[str, Any]
) -> MlflowBackend:
    """The run of MLflow, new or taken up again."""
    uri = settings.uri or (RunFolder(folder).outputs / "mlruns").as_uri()
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # new ones refuse it otherwise
    client = import_module("mlflow.tracking").MlflowClient(tracking_uri=uri)
    kept = folder / ID
    if kept.is_file():
        run_id = kept.read_text(encoding="utf-8").strip()
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = _new_run(client, settings, folder, config)
        kept.write_text(run_id, encoding="utf-8")
    return MlflowBackend(client, run_id, settings)


class MlflowBackend:
    """Writes into one run of MLflow."""

    def __init__(self, client: Any, run_id: str, settings: MlflowTracking) -> None:
        self._client, self._run_id, self._settings = client, run_id, settings

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._numbers({metrics.key(stage, name): value for name, value in values.items()}, step)

    def rollouts(self, stage: str, step: int, rows: Sequence[Row]) -> None:
        rows, file = rows[: self._settings.rollout_rows], f"rollouts/{stage}-{step:05d}"
        plain = [{name: row[name] for name in row if name != THUMBNAIL} for row in rows]
        self._table(f"{file}.json", plain)
        pictures = list(dict.fromkeys(row[THUMBNAIL] for row in rows if row.get(THUMBNAIL)))
        if pictures:
            self._client.log_image(self._run_id, side_by_side(pictures), f"{file}.png")

    def evaluation(self, rows: Sequence[Row]) -> None:
        self._numbers(dict(evaluated(rows)), trained(rows[-1]["stage"]))
        self._table(f"{metrics.RESULTS}.json", [result_columns(row) for row in rows])

    def made(self, product: Product) -> None:
        folder = f"{product.kind}/{product.name}"
        large = product.mib > self._settings.upload_mib
        paths = {name: str(path) for name, path in product.files.items()} if large else {}
        about = {**product.about, "made_from": list(product.of), "paths": paths}
        self._client.log_dict(self._run_id, json.loads(json.dumps(about)), f"{folder}/about.json")
        for name, text in product.texts.items():
            self._client.log_text(self._run_id, text, f"{folder}/{name}")
        for name, path in {} if large else product.files.items():
            place = (Path(folder) / name).parent.as_posix()
            self._client.log_artifact(self._run_id, str(path), place)

    def rewind(self, stage: str, step: int) -> None:
        """MLflow keeps what it was sent: steps that are taken again appear twice."""

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        spent = summary.get("seconds") or {}
        self._numbers({f"system/total/{phase}": value for phase, value in spent.items()}, 0)
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        entities, now = import_module("mlflow.entities"), int(1000 * time.time())
        found = [entities.Metric(key, float(value), now, step) for key, value in values.items()]
        for start in range(0, len(found), NUMBERS):
            self._client.log_batch(self._run_id, metrics=found[start : start + NUMBERS])

    def _table(self, file: str, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[row.get(name) for name in columns] for row in rows]
        table = json.loads(json.dumps({"columns": columns, "data": data}, default=str))
        self._client.log_dict(self._run_id, table, file)


def _new_run(client: Any, settings: MlflowTracking, folder: Path, config: Mapping[str, Any]) -> str:
    experiment = client.get_experiment_by_name(settings.project)
    made = experiment.experiment_id if experiment else client.create_experiment(settings.project)
    tags = {"stage": str(config.get("stage", {}).get("name")), "group": settings.group or ""}
    run = client.create_run(made, run_name=run_name(folder), tags=tags)
    run_id: str = run.info.run_id
    plain = json.loads(json.dumps(config, default=str))
    client.log_dict(run_id, plain, "config.json")
    entities = import_module("mlflow.entities")
    settings_of = [entities.Param(key, text) for key, text in leaves(plain) if len(text) <= LONGEST]
    for start in range(0, len(settings_of), SETTINGS):
        client.log_batch(run_id, params=settings_of[start : start + SETTINGS])
    return run_id


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Settings as ("sft.phases.0.steps", "500"), in letters that MLflow takes."""
    inside = enumerate(tree) if isinstance(tree, list) else tree.items()
    for name, value in inside:
        here = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict | list) and value:
            yield from leaves(value, here)
        else:
            yield here, str(value)
