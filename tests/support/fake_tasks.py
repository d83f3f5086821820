"""Folders of lm-eval task YAMLs, as a user writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: options
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ANSWER = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
filter_list:
  - {{name: strip, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ITEMS = [
    {"question": f"which is {i}?", "options": ["one", "two", "three"], "label": label,
     "answer": ["one", "two", "three"][label]}
    for i, label in enumerate([2, 0, 1, 1, 2])
]  # fmt: skip


def write_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def write_task(folder: Path, name: str, template: str = CHOICE, more: str = "") -> Path:
    """``<name>.yaml`` over ``<name>.jsonl`` with ``ITEMS``; ``more`` YAML is laid over it."""
    write_lines(folder / f"{name}.jsonl", ITEMS)
    path = folder / f"{name}.yaml"
    path.write_text(template.format(name=name, data=f"{name}.jsonl") + more)
    return path
