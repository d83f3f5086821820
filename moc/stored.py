"""What can be done with a study's files after it ran: find them, score them again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moc.config import StudyConfig, load_study, nearest
from moc.errors import ConfigError

NON_CAUSAL = (
    "non-causal: routing of scope sequence pools later tokens, in bits per byte always and in a\n"
    "score if it is routed on the answer; `moc leak` measures what that is worth"
)


def study_dir_of(path: Path) -> Path:
    """The study folder that ``path`` (a study YAML, or anything inside the folder) belongs to.

    Raises:
        ConfigError: if there is none.
    """
    if path.suffix in (".yaml", ".yml") and path.name != "study.yaml":
        folder = load_study(path).dir
        if not (folder / "study.yaml").is_file():
            raise ConfigError(f"{folder}: this study has not been run yet; try: moc run {path}")
        return folder
    _check_exists(path)
    for folder in (path, *path.resolve().parents):
        if (folder / "study.yaml").is_file():
            return folder
    raise ConfigError(f"{path} is not inside a study's folder (no study.yaml above it)")


def boundary_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a boundary's folder, else all boundaries of the run in it, in order.

    Raises:
        ConfigError: if there is none.
    """
    _check_exists(path)
    if (path / "model.json").is_file():
        return [path]
    found = [file.parent for file in (path / "boundaries").glob("*/model.json")]
    if not found:
        raise ConfigError(f"{path} holds no model; name a seed's folder or one below boundaries/")
    return sorted(found, key=lambda folder: int(folder.name.partition("-")[0]))


def study_of(path: Path) -> tuple[StudyConfig, Path]:
    """The study that ``path`` belongs to, and the folder it is in now.

    Raises:
        ConfigError: if there is none.
    """
    folder = study_dir_of(path)
    study = load_study(folder / "study.yaml")
    study.runs_dir = str(folder.parent)
    return study, folder


def evaluate_stored(
    path: Path,
    suite: str = "study",
    route_on: Literal["context", "full", "both"] | None = None,
) -> str:
    """Score one boundary, or every boundary of a run; the same numbers as during the study.

    Args:
        path: ``.../boundaries/<i>-<name>``, or ``.../seed-<n>``.
        suite: ``study``, or the name of a suite in ``evals.suites``.
        route_on: what may steer the routing of a model that looks ahead; None: as in the study.

    Returns:
        A text table, and the SHA-256 of the weights that were scored.

    Raises:
        ConfigError: for a path that holds no boundary, or an unknown suite.
        CheckpointError: if the files are damaged.
    """
    folders = boundary_folders(path)
    study, study_dir = study_of(path)
    from evals.observing import looks_ahead
    from evals.suites import suite_tasks
    from moc.data.tasks import write_task_items
    from moc.data.tokenizer import Tokenizer
    from moc.evaluate import BoundaryEvaluator
    from moc.model import load_model
    from moc.text import table
    from moc.train.checkpoints import check_manifest
    from moc.train.strategies import device_of

    study.evals.tasks = suite_tasks(suite, study.evals.tasks)
    study.evals.route_on = route_on or study.evals.route_on
    study.evals.leakage_windows = 0  # `moc leak` shows that
    write_task_items(study, study_dir / "tasks")
    evaluator = BoundaryEvaluator(study, Tokenizer.load(study_dir / "tokenizer"))
    rows = {}
    fingerprints = []
    ahead = False
    for folder in folders:
        fingerprint = check_manifest(folder)["sha256"]["model.safetensors"]
        fingerprints.append(f"{folder.name}: weights {fingerprint}")
        model = load_model(folder).to(device_of(study.trainer))
        ahead = ahead or looks_ahead(model)
        scores, _ = evaluator.score(model)
        for task, score in scores["tasks"].items():
            baselines = f"{score['chance']:.3f} / {score['majority']:.3f}"
            row = [score["metric"], f"{score['value']:.4f}", baselines]
            rows[f"{folder.name}  {task}"] = row
        for source, bits in scores["bits_per_byte"].items():
            rows[f"{folder.name}  {source}"] = ["bits per byte", f"{bits:.4f}", ""]
    header = ["boundary and what was scored", "metric", "value", "chance / majority"]
    notes = [NON_CAUSAL] if ahead else []
    return "\n".join([*table(header, rows), "", *notes, *fingerprints])


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    path = path.absolute()
    parent = next(p for p in path.parents if p.exists())
    missing = path.relative_to(parent).parts[0]
    found = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    raise ConfigError(f"no {missing!r} in {parent}; {nearest(missing, found)}")
