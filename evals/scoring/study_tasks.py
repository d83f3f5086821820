"""The evaluation items that come from the study's own data, one JSON object per line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evals.scoring.suites import SUITES
from moc.config.data import SourceConfig
from moc.config.schema import StudyConfig
from moc.data.facts import POOL_SIZES, fact_questions
from moc.data.skills import skill_examples
from moc.data.tokenizer import used_sources
from moc.errors import ConfigError, nearest
from moc.store.files import write_lines

TaskItems = Mapping[str, list[dict[str, Any]]]  # by task

_KIND = {"facts_choice": "facts", "facts_answer": "facts", "skills_answer": "skills"}


def study_tasks(study: StudyConfig) -> dict[str, tuple[str, str]]:
    """The tasks that the study's data can be asked, by name: the base task and the source.

    A base task has its plain name where the study trains on one source of its kind; where there are
    several, it is a task for each, ``<base>.<source>``. That name is also understood in
    ``evals.tasks`` where there is one. Facts with ``documents: questions`` are about the people of
    another source and make no task.

    Raises:
        ConfigError: if ``evals.tasks`` has one of these tasks without a source for it.
    """
    asked = [name for entry in study.evals.tasks for name in SUITES.get(entry, [entry])]
    tasks: dict[str, tuple[str, str]] = {}
    for base, kind in _KIND.items():
        sources = _sources(study, kind)
        if base in asked and not sources:
            raise ConfigError(
                f"evals.tasks has {base!r}, but no phase trains on a source of kind {kind!r}"
                + (" with documents: all" if kind == "facts" else "")
            )
        for source in sources:
            if len(sources) == 1:
                tasks[base] = base, source
            if len(sources) > 1 or f"{base}.{source}" in asked:
                tasks[f"{base}.{source}"] = base, source
    for name in asked:
        base, dot, source = name.partition(".")
        if base in _KIND and dot and name not in tasks:
            sources = _sources(study, _KIND[base])
            raise ConfigError(
                f"evals.tasks: {name!r} needs {source!r} to be a source of kind {_KIND[base]!r} "
                f"that a phase trains on; {nearest(source, sources)}"
            )
    return tasks


def write_task_items(study: StudyConfig, folder: Path) -> None:
    """Write ``<task>.jsonl`` for every one of ``task_items``."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, found in task_items(study):
        write_lines(folder / f"{task}.jsonl", found)


def task_items(study: StudyConfig) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Those of ``study_tasks`` that ``evals.tasks`` asks for, each with its first
    ``evals.num_items`` items (null: all).

    Facts are asked about people whose questions were never trained; skills on instructions that
    were never trained. ``pool_size``, of facts: how many values the attribute can take.

    Raises:
        ConfigError: if the study has no source for a task, or one without items.
    """
    asked = {name for entry in study.evals.tasks for name in SUITES.get(entry, [entry])}
    for task, (base, source) in study_tasks(study).items():
        if asked.isdisjoint((task, base)):
            continue
        items = _items(base, source, study.data[source])
        found = list(itertools.islice(items, study.evals.num_items))
        if not found:
            raise ConfigError(f"data.{source} has no items for {task}; lower its question_share")
        yield task, found


def _sources(study: StudyConfig, kind: str) -> list[str]:
    return [
        name
        for name in used_sources(study)
        if study.data[name].kind == kind
        and (kind != "facts" or study.data[name].documents == "all")
    ]


def _items(base: str, name: str, config: SourceConfig) -> Iterator[dict[str, Any]]:
    if base == "skills_answer":
        seen = set()
        for example in skill_examples(config, "validation"):
            if example.prompt not in seen:
                seen.add(example.prompt)
                yield {
                    "id": f"{name}-{len(seen)}",
                    "source": name,
                    "prompt": example.prompt,
                    "answer": example.answer,
                    "skill": example.skill,
                }
        return
    for question in fact_questions(config, trained=False):
        item = {
            "id": f"{name}-{question.person_id}-{question.attribute}",
            "source": name,
            "question": question.question,
            "answer": question.answer,
            "attribute": question.attribute,
            "pool_size": POOL_SIZES[question.attribute],
            "person_id": question.person_id,
        }
        if base == "facts_choice":
            item |= {"choices": question.choices, "label": question.label}
        yield item
