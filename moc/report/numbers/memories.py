"""What a stored study says of an arm's memory: its kind, its bank, and what is read of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moc.report.numbers.study import MemoryShape

Tree = Mapping[str, Any]


def memory_shape(model: Tree) -> MemoryShape | None:
    """Of ``model`` with its settings as stored; a kind not named here says no more than its name.
    None: no memory."""
    memory = model["memory"]
    if memory is None:
        return None
    kind = memory["kind"]
    match kind:
        case "chapters":
            return _chapters(memory[kind], model["dim"])
        case "product_keys":
            keys = memory[kind]
            read = keys["num_heads"] * keys["num_read"]
            text = f"{keys['num_read']} by each of {keys['num_heads']} heads"
            return MemoryShape(kind, "value", keys["num_keys"] ** 2, [model["dim"]], 0, text, read)
    return MemoryShape(kind)


def routing_text(model: Tree) -> str | None:
    """What shares a choice of rows, by the settings alone; None: a kind not named here."""
    memory = model["memory"]
    if memory is None:
        return "none"
    if memory["kind"] == "product_keys":
        return "token"
    if memory["kind"] != "chapters":
        return None
    if memory["chapters"]["num_routed"] is None:
        return "none"
    router = memory["chapters"]["router"]
    text = str(router["scope"])
    if text == "segment":
        window = router["window_tokens"]
        text += f" of {router['segment_tokens']}" + (f", window {window}" if window else "")
    return text


def sees_later_tokens(model: Tree) -> bool:
    """By the settings alone; a random address looks at none."""
    return routing_text(model) == "sequence" and model["memory"]["address"] == "learned"


def _chapters(chapters: Tree, dim: int) -> MemoryShape:
    count, shared, routed = (chapters[k] for k in ("num_chapters", "num_shared", "num_routed"))
    tokens, width = chapters["chapter_tokens"], chapters["dim"] or dim
    num_read = count if routed is None else shared + routed
    text = ("all" if routed is None else f"{routed} routed") + f" + {shared} shared"
    return MemoryShape(
        "chapters", "chapter", count, [tokens, width], shared, text, num_read * tokens
    )
