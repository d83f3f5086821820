"""The evaluation items that come from the study's own data, one JSON object per line."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moc.config import ConfigError, SourceConfig, StudyConfig
from moc.data.facts import fact_questions
from moc.data.skills import skill_examples
from moc.data.tokenizer import used_sources

_KIND = {"facts_choice": "facts", "facts_answer": "facts", "skills_answer": "skills"}


def write_task_items(study: StudyConfig, folder: Path) -> None:
    """Write ``<task>.jsonl`` for those of the study's tasks that are made from its data, with
    ``evals.num_items`` items spread evenly over the sources of the task's kind.

    Facts are asked about people whose questions were never trained; skills on instructions that
    were never trained.

    Raises:
        ConfigError: if the study has no source for a task, or one without items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in study.evals.tasks:
        if task not in _KIND:
            continue
        names = [name for name in used_sources(study) if study.data[name].kind == _KIND[task]]
        if not names:
            raise ConfigError(
                f"evals.tasks has {task!r}, but no phase trains on a source of kind {_KIND[task]!r}"
            )
        share = -(-study.evals.num_items // len(names))
        items: list[dict[str, Any]] = []
        for name in names:
            found = list(itertools.islice(_items(task, name, study.data[name]), share))
            if not found:
                raise ConfigError(f"data.{name} has no items for {task}; lower its question_share")
            items += found
        _write_lines(folder / f"{task}.jsonl", items[: study.evals.num_items])


def _items(task: str, name: str, config: SourceConfig) -> Iterator[dict[str, Any]]:
    if task == "skills_answer":
        seen = set()
        for example in skill_examples(config, "validation"):
            if example.prompt not in seen:
                seen.add(example.prompt)
                yield {
                    "id": f"{name}-{len(seen)}",
                    "prompt": example.prompt,
                    "answer": example.answer,
                    "skill": example.skill,
                }
        return
    for question in fact_questions(config, trained=False):
        item = {
            "id": f"{name}-{question.person_id}-{question.attribute}",
            "question": question.question,
            "answer": question.answer,
            "attribute": question.attribute,
            "person_id": question.person_id,
        }
        if task == "facts_choice":
            item |= {"choices": question.choices, "label": question.label}
        yield item


def _write_lines(path: Path, items: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(item) + "\n" for item in items))
    os.replace(temporary, path)
