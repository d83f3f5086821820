"""Whether two configs are the same, and in what they are not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

from moc.config.secrets import as_written


def config_hash(*parts: Any) -> str:
    """Twelve hex digits that change when any of the dataclasses (or plain values) does."""
    encoded = json.dumps(parts, sort_keys=True, default=asdict)
    return hashlib.sha256(encoded.encode()).hexdigest()[:12]


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """``key: old, now new`` for every setting that two configs (or parts of them) differ in, as it
    is written."""
    if is_dataclass(before) and is_dataclass(after):
        before, after = vars(before), vars(after)
    if not (isinstance(before, dict) and isinstance(after, dict)):
        old, new = as_written(before), as_written(after)
        return [] if before == after or old == new else [f"{path}: {old}, now {new}"]
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        where = f"{path}.{key}" if path else str(key)
        found += differences(before.get(key), after.get(key), where)
    return found
