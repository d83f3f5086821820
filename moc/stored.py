"""What can be done with a study's files after it ran: find it, score it again, generate."""

from __future__ import annotations

from pathlib import Path

from moc.config import StudyConfig, load_study, nearest
from moc.errors import ConfigError


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


def evaluate_stored(path: Path, suite: str = "study") -> str:
    """Score one boundary, or every boundary of a run; the same numbers as during the study.

    Args:
        path: ``.../boundaries/<i>-<name>``, or ``.../seed-<n>``.
        suite: ``study``, or the name of a suite in ``evals.suites``.

    Returns:
        A text table, and the SHA-256 of the weights that were scored.

    Raises:
        ConfigError: for a path that holds no boundary, or an unknown suite.
        CheckpointError: if the files are damaged.
    """
    folders = _boundaries(path)
    study, study_dir = _study_of(path)
    from evals.suites import suite_tasks
    from moc.data.tasks import write_task_items
    from moc.data.tokenizer import Tokenizer
    from moc.evaluate import BoundaryEvaluator
    from moc.model import load_model
    from moc.text import table
    from moc.train.checkpoints import check_manifest
    from moc.train.strategies import device_of

    study.evals.tasks = suite_tasks(suite, study.evals.tasks)
    write_task_items(study, study_dir / "tasks")
    evaluator = BoundaryEvaluator(study, Tokenizer.load(study_dir / "tokenizer"))
    rows = {}
    fingerprints = []
    for folder in folders:
        fingerprint = check_manifest(folder)["sha256"]["model.safetensors"]
        fingerprints.append(f"{folder.name}: weights {fingerprint}")
        scores, _ = evaluator.score(load_model(folder).to(device_of(study.trainer)))
        for task, score in scores["tasks"].items():
            baselines = f"{score['chance']:.3f} / {score['majority']:.3f}"
            row = [score["metric"], f"{score['value']:.4f}", baselines]
            rows[f"{folder.name}  {task}"] = row
        for source, bits in scores["bits_per_byte"].items():
            rows[f"{folder.name}  {source}"] = ["bits per byte", f"{bits:.4f}", ""]
    header = ["boundary and what was scored", "metric", "value", "chance / majority"]
    return "\n".join([*table(header, rows), "", *fingerprints])


def continue_prompt(
    path: Path,
    prompt: str,
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """The model's continuation of ``prompt``; of a seed's folder, by its last boundary's model.

    Raises:
        ConfigError: if ``path`` is no boundary or the prompt is empty.
        CheckpointError: if the files are damaged.
    """
    folder = _boundaries(path)[-1]
    study, study_dir = _study_of(path)
    if not prompt:
        raise ConfigError("--prompt is empty")
    from moc.data.document import TURN_END, chat_prompt
    from moc.data.tokenizer import Tokenizer
    from moc.model import generate, load_model
    from moc.train.checkpoints import check_manifest
    from moc.train.strategies import device_of

    check_manifest(folder)
    tokenizer = Tokenizer.load(study_dir / "tokenizer")
    text = chat_prompt([{"role": "user", "content": prompt}]) if chat else prompt
    stop = {tokenizer.eos_id}
    if len(turn_end := tokenizer.encode(TURN_END)) == 1:  # else it is ordinary text to this one
        stop.add(turn_end[0])
    (new,) = generate(
        load_model(folder).to(device_of(study.trainer)),
        [tokenizer.encode(text)],
        max_new_tokens=max_new_tokens,
        stop_ids=stop,
        temperature=temperature,
        seed=seed,
    )
    return tokenizer.decode(new)


def _boundaries(path: Path) -> list[Path]:
    _check_exists(path)
    if (path / "model.json").is_file():
        return [path]
    found = [file.parent for file in (path / "boundaries").glob("*/model.json")]
    if not found:
        raise ConfigError(f"{path} holds no model; name a seed's folder or one below boundaries/")
    return sorted(found, key=lambda folder: int(folder.name.partition("-")[0]))


def _study_of(path: Path) -> tuple[StudyConfig, Path]:
    folder = study_dir_of(path)
    study = load_study(folder / "study.yaml")
    study.runs_dir = str(folder.parent)
    return study, folder


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    path = path.absolute()
    parent = next(p for p in path.parents if p.exists())
    missing = path.relative_to(parent).parts[0]
    found = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    raise ConfigError(f"no {missing!r} in {parent}; {nearest(missing, found)}")
