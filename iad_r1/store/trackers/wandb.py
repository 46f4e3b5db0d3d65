"""Weights & Biases. It never asks for a login, and waits no longer than the configured timeouts."""

from __future__ import annotations

import io
import json
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from iad_r1.settings.tracking import Mode, WandbTracking
from iad_r1.store import metrics
from iad_r1.store.products import Product, run_name
from iad_r1.store.run_folder import TRAINED
from iad_r1.store.trackers import THUMBNAIL, Row, evaluated, result_columns, trained
from iad_r1.store.trackers.mirror import one_line, say

if TYPE_CHECKING:
    from wandb import Artifact
    from wandb.sdk.wandb_run import Run

ID = "wandb/run_id"  # in the run folder: a run that goes on is the same run
COMMITTED = 600  # seconds that an artifact may take to be uploaded before another refers to it


def open_backend(
    settings: WandbTracking, folder: Path, config: Mapping[str, Any]
) -> WandbBackend | None:
    """The wandb run, online or offline; None if it is disabled."""
    if settings.mode == "disabled":
        return None
    # What is still to be uploaded: in the run folder, as the rest, unless somebody chose a place.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb" / "data"))
    import wandb

    # Silent from here on, or its login step prints lines of its own.
    base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    mode = resolve_mode(settings.mode, os.environ, base_url)
    if mode == "disabled":
        return None
    if mode == "online":
        try:
            return WandbBackend(_init(settings, folder, config, "online"), settings)
        except (wandb.Error, OSError) as error:
            say(f"wandb could not go online ({one_line(error)}); this run is kept offline.")
            wandb.teardown()  # its service would still hold the id of the run
    return WandbBackend(_init(settings, folder, config, "offline"), settings)


class WandbBackend:
    """Writes into one wandb run."""

    def __init__(self, run: Run, settings: WandbTracking) -> None:
        self._run, self._settings = run, settings
        self._made: dict[str, Artifact] = {}
        self._used: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        named = {metrics.key(stage, name): value for name, value in values.items()}
        self._run.log({metrics.step_key(stage): step, **named})

    def rollouts(self, stage: str, step: int, rows: Sequence[Row]) -> None:
        table = _table(rows[: self._settings.rollout_rows])
        self._run.log({metrics.step_key(stage): step, metrics.completions_key(stage): table})

    def evaluation(self, rows: Sequence[Row]) -> None:
        table = _table([result_columns(row) for row in rows])
        place = {metrics.EVAL_STAGE: trained(rows[-1]["stage"])}
        self._run.log({**place, **dict(evaluated(rows)), metrics.RESULTS: table})

    def rewind(self, stage: str, step: int) -> None:
        """W&B keeps what it was sent: steps that are taken again appear twice."""

    def made(self, product: Product) -> None:
        """Log it as an artifact; what it was made from becomes an input of the run. Offline W&B
        takes no inputs, so there `made_from` of the metadata alone tells."""
        made = artifact(product, self._settings.upload_mib)
        if not self._run.offline and product.kind == "dataset":
            self._made[product.name] = self._run.use_artifact(made)
            self._used.add(product.name)
            return
        for name in product.of:
            self._use(name)
        self._made[product.name] = self._run.log_artifact(made)

    def _use(self, name: str) -> None:
        if self._run.offline or name in self._used:
            return
        self._used.add(name)
        try:
            own = self._made.get(name)
            self._run.use_artifact(own.wait(COMMITTED) if own else f"{name}:latest")
        except Exception as error:  # of a run that was offline, or in another project
            say(f"wandb does not know {name} ({one_line(error)}): its graph begins without it.")

    def close(self, summary: Mapping[str, Any], failed: bool) -> None:
        spent = summary.get("seconds") or {}
        self._run.summary.update({f"system/total/{name}": value for name, value in spent.items()})
        self._run.finish(exit_code=1 if failed else 0)


def artifact(product: Product, upload_mib: float) -> Artifact:
    """A product as wandb's own. Files of more than `upload_mib` together are not uploaded: it then
    holds their paths, and wandb does not read them."""
    import wandb

    about = {**product.about, "mib": round(product.mib, 3), "made_from": list(product.of)}
    made = wandb.Artifact(product.name, type=product.kind, metadata=about)
    for name, text in product.texts.items():
        with made.new_file(name) as file:
            file.write(text)
    for name, path in product.files.items():
        if product.mib <= upload_mib:
            # nothing changes weights any more, and a copy of them would cost their size
            policy = "immutable" if product.kind == "model" else "mutable"
            made.add_file(str(path), name=name, policy=policy, skip_cache=True)
        else:
            made.add_reference(path.absolute().as_uri(), name=name, checksum=False)
    return made


def _table(rows: Sequence[Row]) -> Any:
    """Rows as a wandb table: the union of their columns, each of one type. Pictures are images,
    numbers stay numbers, and all else is text."""
    import wandb

    names: list[Any] = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_column(name, [row.get(name) for row in rows]) for name in names]
    data: list[Any] = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return wandb.Table(columns=names, data=data, dtype=[kind for kind, _ in columns])


def _column(name: str, cells: Sequence[Any]) -> tuple[type, list[Any]]:
    """The type of a column, and its cells in it; what is missing stays None."""
    import wandb
    from PIL import Image

    there = [cell for cell in cells if cell is not None]
    as_one: Callable[[Any], Any] = _text
    kind: type = str
    if name == THUMBNAIL and there:
        kind, as_one = wandb.Image, lambda cell: wandb.Image(Image.open(io.BytesIO(cell)))
    elif there and all(isinstance(cell, int | float) for cell in there):
        kind, as_one = float, float
    return kind, [None if cell is None else as_one(cell) for cell in cells]


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else json.dumps(cell, default=str)


# --- online or offline ---------------------------------------------------------------------------


def resolve_mode(
    mode: Mode, environ: Mapping[str, str], base_url: str
) -> Literal["online", "offline", "disabled"]:
    """What a configured mode means on this machine.

    `auto` follows WANDB_MODE where it is set, and else goes online exactly if a login exists.
    `online` without a login would ask for one, so it becomes offline, said once.
    """
    if mode == "auto":
        wanted = environ.get("WANDB_MODE", "")
        if wanted in ("offline", "disabled"):
            return wanted
        return "online" if has_login(environ, base_url) else "offline"
    if mode == "online" and not has_login(environ, base_url):
        say("tracking.mode=online, but there is no wandb login: kept offline. Run `wandb login`.")
        return "offline"
    return mode


def has_login(environ: Mapping[str, str], base_url: str) -> bool:
    """Whether wandb would find an API key for its server: WANDB_API_KEY, or a netrc entry."""
    if environ.get("WANDB_API_KEY"):
        return True
    names = [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next((p for name in names if (p := Path(name).expanduser()).is_file()), None)
    try:
        entries = netrc.netrc(str(path)) if path else None
    except (netrc.NetrcParseError, OSError):
        return False  # wandb could not read it either
    host = urlsplit(base_url).netloc
    # wandb's present default host is a front of the older one, and takes its logins too.
    hosts = (host, "api.wandb.ai") if host == "api.forge.coreweave.com" else (host,)
    return entries is not None and any(entries.authenticators(name) for name in hosts)


def _init(
    settings: WandbTracking,
    folder: Path,
    config: Mapping[str, Any],
    mode: Literal["online", "offline"],
) -> Run:
    import wandb

    run = wandb.init(
        id=run_id(folder),
        resume="allow" if mode == "online" else None,
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        job_type=config.get("stage", {}).get("name"),
        tags=settings.tags,
        name=run_name(folder),
        dir=folder,
        config=dict(config),
        mode=mode,
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=settings.init_timeout,
            finish_timeout=settings.finish_timeout,
            login_timeout=settings.init_timeout,
            save_code=False,
            disable_git=True,
            x_save_requirements=False,
        ),
    )
    for stage in TRAINED:
        axis = metrics.step_key(stage)
        run.define_metric(axis, hidden=True)
        for section in {*metrics.SECTIONS, metrics.UNLISTED} - {"eval"}:
            run.define_metric(f"{section}/{stage}/*", step_metric=axis)
    run.define_metric("eval/*", step_metric=metrics.EVAL_STAGE)
    if mode == "online":
        say(f"wandb: {run.url}")
    return run


def run_id(folder: Path) -> str:
    """The id of a run, kept in its folder: a run that goes on adds to its own curves, and two of
    the same name and second on two machines stay two."""
    path = folder / ID
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
