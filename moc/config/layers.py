"""What a study's files and overrides say, laid over one another: plain values, nothing checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moc.model.config import ModelConfig
from moc.model.presets import preset

Raw = dict[str, Any]  # what a file, or an override, says
Layer = tuple[str, Raw]  # and where it stands


def with_arms(raw: Raw, chosen: Mapping[str, Raw]) -> Raw:
    """``raw`` over its preset, every arm over the result, and over that what was ``chosen`` for
    it."""
    model = raw.get("model") or {}
    base = _laid_over({"model": asdict(_preset_of(model))}, raw)
    own = {key: value for key, value in model.items() if key != "preset"}
    arms = {}
    for name, overlay in (raw.get("arms") or {}).items():
        arm = {"model": base["model"], "phases": base.get("phases") or {}}
        named = (overlay or {}).get("model") or {}
        if named.get("preset"):
            arm["model"] = _laid_over(asdict(_preset_of(named)), own)
        arms[name] = _laid_over(_laid_over(arm, overlay or {}), chosen.get(str(name), {}))
    return {**base, "arms": arms}


def merged(layers: Sequence[Layer]) -> Raw:
    whole: Raw = {}
    for _, raw in layers:
        whole = _laid_over(whole, raw)
    return whole


def _laid_over(below: Raw, above: Raw) -> Raw:
    """``above`` where it says something, else ``below``; lists replace one another."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            merged[key] = _laid_over(under, value)
        else:
            merged[key] = value
    return merged


def _preset_of(model: Raw) -> ModelConfig:
    name = model.get("preset")
    return ModelConfig() if name is None else preset(name)
