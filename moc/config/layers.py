"""What a study's files and overrides say, laid over one another: plain values, nothing checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moc.config.assay import FROZEN
from moc.config.schema import IsoParamConfig
from moc.errors import ConfigError
from moc.model.config import ModelConfig
from moc.model.presets import preset

Raw = dict[str, Any]  # what a file, or an override, says
Layer = tuple[str, Raw]  # and where it stands


def with_arms(raw: Raw, chosen: Mapping[str, Raw]) -> Raw:
    """``raw`` over its preset, every arm over the result (once, or at every size of a ladder, which
    lies between them), and over that what was ``chosen`` for it.

    Raises:
        ConfigError: if two arms and sizes make one name.
    """
    model = raw.get("model") or {}
    base = _laid_over({"model": asdict(_preset_of(model))}, raw)
    own = {key: value for key, value in model.items() if key != "preset"}
    overlays = {name: overlay or {} for name, overlay in (raw.get("arms") or {}).items()}
    if raw.get("assay"):
        overlays = _with_twins(overlays, base, raw["assay"])
    ladder = raw.get("ladder") or {}
    arms: Raw = {}
    for size, said in (ladder or {None: {}}).items():
        rung = said or {}
        for family, overlay in overlays.items():
            name, arm = family, {"model": base["model"] or {}, "phases": base.get("phases") or {}}
            for named in (rung.get("model") or {}, overlay.get("model") or {}):
                if named.get("preset"):
                    arm["model"] = _laid_over(asdict(_preset_of(named)), own)
            arm = _laid_over(_laid_over(arm, rung), overlay)
            if size is not None:
                arm, name = _at_size(arm, size, overlays), f"{family}-{size}"
            if name in arms:
                raise ConfigError(f"ladder: two arms at two sizes are both called {name!r}")
            arms[name] = _laid_over(arm, chosen.get(str(name), chosen.get(str(family), {})))
    return {**base, "arms": arms, "ladder": {}}


def _with_twins(arms: Raw, base: Raw, assay: Raw) -> Raw:
    """``arms``, and after each that has a memory, or that ``assay`` lists, its twin."""
    found: Raw = {}
    listed = assay.get("twins")
    have = {arm.get("twin_of") for arm in arms.values()}
    frozen = {"optimizer": {"bank": {"freeze": True}}}
    phases = dict.fromkeys(base.get("phases") or {}, frozen)
    for name, arm in arms.items():
        found[name] = arm
        whole = _laid_over(base["model"] or {}, arm.get("model") or {})
        wanted = name in listed if isinstance(listed, list) else whole.get("memory") is not None
        if wanted and name not in have and arm.get("twin_of") is None:
            if f"{name}{FROZEN}" in arms:
                raise ConfigError(
                    f"arms.{name}{FROZEN}: with an assay, the twin of arms.{name} is called that; "
                    "give this arm another name, or list in assay.twins who gets one"
                )
            text = f"{name}, its bank frozen at its initial values"
            found[f"{name}{FROZEN}"] = {
                **_laid_over(arm, {"phases": phases}),
                "twin_of": name,
                "description": text,
            }
    return found


def _at_size(arm: Raw, size: str, arms: Raw) -> Raw:
    """``arm`` with its size, matched to another arm at the same size."""
    matched: Raw = {}
    for setting in ("iso_flop", "iso_param"):
        if (match := arm.get(setting)) is not None:
            target = match.get("target", IsoParamConfig.target)
            matched[setting] = {**match, "target": f"{target}-{size}" if target in arms else target}
    if (twin := arm.get("twin_of")) is not None:
        matched["twin_of"] = f"{twin}-{size}"
    return {**arm, **matched, "size": str(size)}


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
