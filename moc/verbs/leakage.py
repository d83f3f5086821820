"""``moc leakage``: what a stored model gains by routing on later tokens."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moc.config.data import SourceConfig
from moc.config.schema import EvalConfig, StudyConfig
from moc.data.files import matching_files
from moc.errors import ConfigError, nearest
from moc.store.rundir import Boundary
from moc.text import table
from moc.verbs.stored import find_stored

_COLUMNS = 100
_LEGEND = [
    "full: routed on the whole window; prefix: on what precedes the predicted token;",
    "counterfactual: on that and another window's later tokens. leakage = prefix - full,",
    "future = counterfactual - full, mismatch = prefix - counterfactual: an estimate, for another",
    "text's future can mislead the router.",
]


def leakage_of_stored(
    path: Path, *, data: Sequence[str] = (), num_windows: int | None = None
) -> dict[str, Any]:
    """Measure the leakage of one boundary's model, a causal one too.

    Args:
        path: ``.../boundaries/<i>-<name>``, or ``.../seed-<n>`` for its last boundary.
        data: sources of the study, or paths and globs of text; none: all that the study trains on.
        num_windows: per source; None: as many as in the study.

    Returns:
        ``{"checkpoint", "arm", "seed", "boundary", "scope", "causal", "sources", "tasks"}``; the
        last three as in ``evals.measures.leakage.leakage_record``.

    Raises:
        ConfigError: for a path that holds no boundary, or text that is missing or too short.
        CheckpointError: if the files are damaged.
    """
    stored = find_stored(path)
    study, folder = stored.study, stored.boundaries[-1]
    if num_windows is None:
        num_windows = study.evals.leakage_windows or EvalConfig().leakage_windows
    if num_windows < 2:
        raise ConfigError(
            f"--windows must be at least 2, to have another future; it is {num_windows}"
        )
    from evals.measures.leakage import leakage_record
    from evals.scoring.harness import evaluate_model
    from evals.scoring.study_tasks import write_task_items
    from moc.data.tokenizer import used_sources
    from moc.data.windows import comparable_texts
    from moc.evaluate.asked import all_tasks, user_tasks
    from moc.model import is_causal, routing_scope

    model, _ = stored.load(folder)
    tokenizer = stored.tokenizer()
    for entry in data:
        _add_source(study, entry)
    evals = study.evals
    length = evals.context_length
    max_tokens = max(evals.validation_tokens, num_windows * length + 1)
    windows: dict[str, Any] = {}
    for source in data or used_sources(study):
        windows |= comparable_texts(study, source, tokenizer, length, max_tokens)
    own = user_tasks(study)
    with tempfile.TemporaryDirectory() as items:  # made anew: the study's own may be damaged
        write_task_items(study, Path(items))
        _, samples = evaluate_model(
            model,
            tokenizer,
            tasks=[] if is_causal(model.config) else all_tasks(study, own),
            task_dir=Path(items),
            context_length=length,
            batch_size=evals.batch_size,
            num_items=evals.num_items,
            num_fewshot=evals.num_fewshot,
            hub_mirror=evals.hub_mirror,
            user_tasks=own,
            route_on="both",
            choices_only=True,
        )
    record = leakage_record(
        model,
        windows,
        samples,
        num_windows=num_windows,
        batch_size=evals.batch_size,
        even_if_causal=True,
    )
    for source, found in record["sources"].items():
        if "leakage" not in found:
            raise ConfigError(
                f"leakage on {source!r}: needs two whole windows of {length} tokens, one for "
                "another future; give it more text"
            )
    boundary = Boundary(folder.resolve())
    return {
        "checkpoint": str(folder),
        "arm": boundary.run.arm,
        "seed": boundary.run.seed,
        "boundary": boundary.name,
        "scope": routing_scope(model.config),
        **record,
    }


def render_leakage(record: Mapping[str, Any]) -> str:
    """What ``leakage_of_stored`` found: tables of at most 100 columns, then plain words."""
    sources: dict[str, Any] = record["sources"]
    causal = "causal" if record["causal"] else "non-causal: it sees later tokens"
    routing = "no router" if record["scope"] == "none" else f"scope {record['scope']}"
    lines = [
        record["checkpoint"],
        f"arm {record['arm']}, seed {record['seed']}, boundary {record['boundary']}; "
        f"{routing}, {causal}",
        "",
    ]
    header = ["bits per token, by routing", "windows", "tokens", "full", "prefix"]
    header += ["counterfactual"]
    losses = {
        name: [
            *(f"{found[key]:,}" for key in ("num_windows", "num_tokens")),
            *(f"{found[key]:.4f}" for key in ("full", "prefix", "counterfactual")),
        ]
        for name, found in sources.items()
    }
    lines += [*table(header, losses), ""]
    header = ["bits per token", "leakage [95%]", "of it: future", "of it: mismatch"]
    parts = {
        name: [_interval(found[key]) for key in ("leakage", "future", "mismatch")]
        for name, found in sources.items()
    }
    lines += [*table(header, parts), "", *_LEGEND, ""]
    bins = {
        f"{name}, {part['start']} to {part['end'] - 1}": [
            f"{part['num_tokens']:,}",
            _interval(part["leakage"]),
        ]
        for name, found in sources.items()
        for part in found["by_position"]
    }
    lines += [*table(["bits per token, by position", "tokens", "leakage [95%]"], bins), ""]
    if record["tasks"]:
        header = ["accuracy, routed on", "items", "context", "answer too", "leakage [95%]"]
        tasks = {
            name: [
                str(found["num_items"]),
                *(f"{found[key]:.4f}" for key in ("context", "full")),
                _interval(found["leakage"]),
            ]
            for name, found in record["tasks"].items()
        }
        lines += [*table(header, tasks), ""]
    if record["causal"]:
        measured = max(abs(found["leakage"]["value"]) for found in sources.values())
        lines.append(f"zero by construction: {routing}; measured {measured:.1g}")
    else:
        for name, found in sources.items():
            lines += textwrap.wrap(f"{name}: {_in_words(found)}", _COLUMNS)
    return "\n".join(lines)


def _add_source(study: StudyConfig, entry: str) -> None:
    """Let ``entry`` name a source of ``study``: a file or glob of text, if it is not one yet."""
    if entry in study.data:
        return
    try:
        matching_files(entry)
    except ConfigError as error:
        known = nearest(entry, list(study.data))
        raise ConfigError(f"--data: {error}; nor is it a source of the study: {known}") from error
    study.data[entry] = SourceConfig(kind="text", path=entry, validation_path=entry)


def _in_words(found: Mapping[str, Any]) -> str:
    leakage = found["leakage"]
    size = _interval(leakage)
    if leakage["low"] <= 0 <= leakage["high"]:
        return f"no cost of routing on the prefix only shows: {size} bits per token"
    if leakage["high"] < 0:
        return f"routing on the prefix only does better: it costs {size} bits per token"
    said = [f"routing on the prefix only, instead of the whole, costs {size} bits per token"]
    for key, what in (
        ("future", "knowing the future"),
        ("mismatch", "mere mismatch, routing unlike that of training"),
    ):
        shows = found[key]["low"] > 0
        said.append(
            f"{_interval(found[key])} of it is {what}" if shows else f"no part shows as {what}"
        )
    return "; by estimate, ".join((said[0], ", and ".join(said[1:])))


def _interval(found: Mapping[str, float]) -> str:
    return f"{_number(found['value'])} [{_number(found['low'])}, {_number(found['high'])}]"


def _number(value: float) -> str:
    return f"{round(value, 4) + 0.0:.4f}"  # never -0.0000
