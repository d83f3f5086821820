"""What an arm's memory is, as plain data: for the plan's text and JSON, and so for the report."""

from __future__ import annotations

from typing import Any

from moc.model.config import ModelConfig
from moc.model.memory.build import build_memory


def memory_of(model: ModelConfig) -> dict[str, Any] | None:
    """None without memory."""
    if model.memory is None:
        return None
    kind = build_memory(model)
    return {
        "kind": model.memory.kind,
        "row_name": kind.row_name,
        "num_rows": 1 if model.memory.rows == "one" else kind.num_rows,  # that there are
        "row_shape": list(kind.row_shape),
        "num_choices": kind.num_rows,  # that one of the rows, or a single one, stands for
        "num_always": kind.num_always,
        "read": kind.read_words,
        "most_mixed": kind.most_mixed,
        "routing": kind.group_words if kind.num_picked else "none",
    }
