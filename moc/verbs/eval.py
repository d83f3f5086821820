"""What can be done with a study's files after it ran: find them, score them again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from moc.config.secrets import as_written
from moc.errors import ConfigError
from moc.store.files import write_json
from moc.text import table
from moc.verbs.stored import find_stored

STUDY = "study"  # in place of a suite: the study's own tasks

NON_CAUSAL = (
    "non-causal: routing of scope sequence pools later tokens, in bits per byte always and in a\n"
    "score if it is routed on the answer; `moc leakage` measures what that is worth"
)

_LEGEND = (
    "centred: 0 at the better of chance and majority, 1 all right; bits/byte: of the right answer"
)


def evaluate_stored(
    path: Path,
    suite: str = STUDY,
    route_on: Literal["context", "full", "both"] | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Score one boundary, or every boundary of a run.

    Records go to ``<boundary>/suites/<suite>.json`` and samples to ``<suite>/<task>.jsonl`` beside
    it; what the study itself recorded stays as it is. The evaluation length is the study's, as at
    every boundary, unless it is overridden.

    Args:
        path: ``.../boundaries/<i>-<name>``, or ``.../seed-<n>``.
        suite: ``study`` for its own tasks, with the same numbers as during the study and bits per
            byte of its sources; or a suite or task by name, on all items.
        route_on: what may steer the routing of a model that is not causal; None: as in the study.
        overrides: ``evals.<key>=<value>`` laid over the study.

    Returns:
        A text table, the SHA-256 of the weights that were scored, and where the records are.

    Raises:
        ConfigError: for a path that holds no boundary, an unknown suite or task, or data that
            cannot be had.
        CheckpointError: if the files are damaged.
    """
    for override in overrides:
        if not override.startswith(("evals.", "trainer.")):
            raise ConfigError(
                f"{override!r}: the model is trained; only evals.<key> and trainer.<key> can change"
            )
    stored = find_stored(path, overrides)
    from evals.scoring.study_tasks import write_task_items
    from moc.evaluate.evaluator import BoundaryEvaluator
    from moc.evaluate.record import write_samples
    from moc.model import is_causal

    study = stored.study
    if suite != STUDY:
        study.evals.tasks = [suite]
        if not any(override.startswith("evals.num_items=") for override in overrides):
            study.evals.num_items = None
    study.evals.route_on = route_on or study.evals.route_on
    study.evals.leakage_windows = 0  # `moc leakage` shows that
    rows: dict[str, list[str]] = {}
    fingerprints, written = [], []
    all_causal = True
    with tempfile.TemporaryDirectory() as items:  # the study's own items stay as they are
        write_task_items(study, Path(items))
        evaluator = BoundaryEvaluator(study, stored.tokenizer(), task_dir=Path(items))
        for folder in stored.boundaries:
            model, fingerprint = stored.load(folder)
            fingerprints.append(f"{folder.name}: weights {fingerprint}")
            all_causal = all_causal and is_causal(model.config)
            tasks, samples = evaluator.score_tasks(model, evaluator.tasks, study.evals.num_items)
            bits: dict[str, float] = {}
            knowledge: dict[str, Any] = {}
            if suite == STUDY:
                bits = evaluator.score_sources(model)
                knowledge, known_items = evaluator.knowledge.score(model)
                samples = {**samples, **known_items}
            rows |= _rows(folder.name, tasks, bits, knowledge)
            write_samples(folder / "suites" / suite, samples)
            record = {
                "suite": suite,
                "boundary": folder.name,
                "fingerprint": fingerprint,
                "evals": asdict(as_written(study.evals)),
                "tasks": tasks,
                "bits_per_byte": bits,
                "knowledge": knowledge,
            }
            written.append(folder / "suites" / f"{suite}.json")
            write_json(written[-1], record)
    header = ["boundary and what was scored", "metric", "value", "centred", "acc_norm"]
    header += ["bits/byte", "chance / majority", "items"]
    notes = [_LEGEND, *([] if all_causal else [NON_CAUSAL]), *fingerprints]
    notes += [f"written: {file}" for file in written]
    return "\n".join([*table(header, rows, width=120), "", *notes])


def _rows(
    boundary: str,
    tasks: Mapping[str, Mapping[str, Any]],
    bits: Mapping[str, float],
    knowledge: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[str]]:
    """A table's rows, by name."""
    rows = {}
    for task, score in tasks.items():
        per_byte, norm = score["bits_per_byte"], score["extra"].get("acc_norm")
        rows[f"{boundary}  {task}"] = [
            score["metric"],
            f"{score['value']:.4f}",
            f"{score['centred']:.4f}",
            "" if norm is None else f"{norm:.4f}",
            "" if per_byte is None else f"{per_byte:.4f}",
            f"{score['chance']:.3f} / {score['majority']:.3f}",
            str(score["num_items"]),
        ]
    for source, value in bits.items():
        rows[f"{boundary}  {source}"] = ["text", "", "", "", f"{value:.4f}", "", ""]
    for source, known in knowledge.items():
        stored = f"{known['stored']:,.0f} of {known['demand']:,.0f}"
        items = str(known["num_items"])
        rows[f"{boundary}  {source}, values"] = ["bits held", stored, "", "", "", "", items]
    return rows
