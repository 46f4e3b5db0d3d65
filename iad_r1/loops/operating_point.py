"""From which P(yes), or score, on an inspection calls a picture defective: as set, as a run's
validation pictures say, or as good pictures do. No torch: it is known, or refused, before weights
load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from iad_r1.errors import ConfigError, DataError, setting
from iad_r1.judge import thresholds
from iad_r1.judge.outcomes import is_yes_no
from iad_r1.judge.predictions import read_predictions
from iad_r1.report import wording
from iad_r1.settings.config import Config
from iad_r1.settings.predict import JudgingSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.store.starts import Start, start_of
from iad_r1.types import Prediction

MEASURED = ("pictures", "patches", "side", "overkill")  # what moves the score
# what moves P(yes), as the wording of places does; no prompt names the grid
SHOWN = ("prompt", "max_pixels", "max_size", "max_tokens", "samples")


def threshold(config: Config, shots: int) -> float | None:
    """The threshold on P(yes) of pictures shown with so many references, or on the score of nearest
    good patches; None: the model's own word decides, or the good pictures do.

    ConfigError or DataError where `miss_rate` cannot be answered.
    """
    return _found(config, shots)[0]


def described(config: Config, shots: int) -> tuple[float | None, str]:
    """The same, and what there is to say of it, in lines."""
    value, said, rows = _found(config, shots)
    if value is not None and rows:
        said = _sentence(thresholds.at(rows, value, config.seed), rows)
    return value, said


def _found(config: Config, shots: int) -> tuple[float | None, str, list[Prediction]]:
    """A threshold, where it comes from, and the validation answers that have chosen it."""
    stage = config.stage
    assert isinstance(stage, JudgingSettings)
    patches = config.method.name == "patchcore"
    if stage.miss_rate is None:
        own = "none: as the model answers"
        if patches:
            own = f"score 1: {config.patchcore.overkill:g} % of the good pictures may lie above"
        return stage.threshold, own if stage.threshold is None else "as set", []
    if patches:
        rows = _scored_by_patches(config, stage.miss_rate)
        return thresholds.choose(rows, "miss", stage.miss_rate).value, "", rows

    start = start_of(str(config.init))
    if start is None:
        raise ConfigError(
            f"miss_rate={stage.miss_rate:g} needs validation pictures that these weights have "
            f"judged, and {config.init} is no run. Set threshold=... yourself."
        )
    run = RunFolder.open(stage.validation) if stage.validation else start.run
    _check_alike(config, run, start)
    rows = _validation(run, start.stage, shots)
    if not rows:
        raise ConfigError(
            f"miss_rate={stage.miss_rate:g} needs validation pictures that these weights have "
            f"judged with {shots} references, and {run.path} has none. Run `python run.py "
            f"stage=evaluate {setting('init', str(config.init))} evaluate.splits=[validation]` "
            "with the data it was trained on, and add validation=<the folder of that run>."
        )
    value = thresholds.choose(rows, "miss", stage.miss_rate).value
    unread = sum(row.score == UNSCORED for row in rows if row.gold_answer == "yes")
    if value <= UNSCORED:
        raise DataError(
            f"miss_rate={stage.miss_rate:g}: {unread} of the defects in the validation predictions "
            f"of {run.path} got no P(yes), which is more than may be missed at any threshold. "
            "Train longer, or allow a higher miss_rate."
        )
    return value, "", rows


UNSCORED = -1.0  # the score of an answer without P(yes): no threshold catches it


def _validation(run: RunFolder, stage: str, shots: int) -> list[Prediction]:
    """The answers of a run to its validation pictures, those without P(yes) scored lowest."""
    name = f"{stage}.{thresholds.VALIDATION}*.{shots}shot.jsonl"
    return [
        replace(row, id=f"{file.name}/{row.id}", p_yes=None, score=_score(row))
        for file in sorted((run.path / "predictions").glob(name))
        for row in read_predictions(file).values()
        if is_yes_no(row)
    ]


def _score(row: Prediction) -> float:
    found = row.score if row.p_yes is None else row.p_yes
    return UNSCORED if found is None else found


def _scored_by_patches(config: Config, limit: float) -> list[Prediction]:
    """Validation pictures that nearest good patches have judged. ConfigError if there are none, or
    if they were judged otherwise."""
    stage = config.stage
    assert isinstance(stage, JudgingSettings)
    to_type = (
        "python run.py stage=evaluate method=patchcore evaluate.splits=[validation] data=photos "
        "data.root=<folder>"
    )
    if stage.validation is None:
        raise ConfigError(
            f"miss_rate={limit:g} with method=patchcore needs validation pictures that were "
            f"compared with good ones of the same product. Run `{to_type}` and add "
            "validation=<the folder of that run>."
        )
    run = RunFolder.open(stage.validation)
    theirs = run.read_json("config.json").get("patchcore", {})  # none in an older version
    asked = config.patchcore.model_dump()
    changed = [
        f"patchcore.{name}={theirs.get(name)}, now {asked[name]}"
        for name in MEASURED
        if theirs.get(name) != asked[name]
    ]
    if changed:
        raise ConfigError(
            f"the threshold would be chosen on scores of {run.path}, where a score means something "
            f"else ({'; '.join(changed)}). Use the same settings."
        )
    rows = _validation(run, wording.PATCHCORE, 0)
    if not rows:
        raise ConfigError(
            f"miss_rate={limit:g}: {run.path} holds no validation pictures that nearest good "
            f"patches have judged. Run `{to_type}` and name its folder."
        )
    return rows


def _check_alike(config: Config, run: RunFolder, start: Start) -> None:
    """ConfigError unless a run's validation predictions are of these weights, shown the same."""
    theirs = run.read_json("config.json")
    shown, asked = _shown(theirs), _shown(config.model_dump(mode="json"))
    changed = [
        f"{name}={shown.get(name)}, now {asked.get(name)}"
        for name in {**shown, **asked}
        if shown.get(name) != asked.get(name)
    ]
    if changed:
        raise ConfigError(
            f"the threshold would be chosen on predictions of {run.path}, which was evaluated "
            f"otherwise ({'; '.join(changed)}): P(yes) means something else there. Use the same "
            "settings."
        )
    if run.path != start.run.path:
        other = start_of(theirs["init"]) if theirs.get("init") else None
        if other is None or other.path != start.path:
            raise ConfigError(
                f"validation={run.path} has judged with other weights ({theirs.get('init')}) than "
                f"init={start.path}."
            )


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """What P(yes) depends on in a run's settings, by name; one of an older version has fewer."""
    evaluate = {"samples": 1, **config["evaluate"]}
    names = (*SHOWN, "temperature") if evaluate["samples"] > 1 else SHOWN
    places = config.get("location_format", "words")
    return {**{f"evaluate.{n}": evaluate.get(n) for n in names}, "location_format": places}


def _sentence(found: dict[str, Any], rows: list[Prediction]) -> str:
    n = {gold: sum(row.gold_answer == gold for row in rows) for gold in ("yes", "no")}
    bounds = found["ci95"]

    def rate(name: str, of: str) -> str:
        if found[name] is None:
            return f"{wording.METRIC_NAMES[name]} unknown: no good ones"
        return (
            f"{wording.METRIC_NAMES[name]} {wording.percent(found[name])} % "
            f"{wording.interval(bounds.get(name))} of {n[of]}"
        )

    said = (rate("miss_rate", "yes"), rate("overkill_rate", "no"))
    return "\n".join(("which gave on validation pictures a", *said))
