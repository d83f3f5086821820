"""What the phases of a resolved study are, arm by arm: when they end and what they teach."""

from __future__ import annotations

from typing import Any

from moc.store.rundir import TRAINED

Tree = dict[str, Any]


def phases_of(study: Tree, arm: str | None) -> Tree:
    """Those of ``arm``; the study's own for None, or where the arm has none of its own."""
    own = study["arms"][arm].get("phases") if arm is not None else None
    return own or study["phases"]


def phase_ends(study: Tree, arm: str | None) -> list[tuple[str, int]]:
    """Name of each phase and the training tokens seen when it ends."""
    ends, total = [], 0
    for name, phase in phases_of(study, arm).items():
        total += trained_tokens(phase)
        ends.append((name, total))
    return ends


def trained_tokens(phase: Tree) -> int:
    """Tokens of the whole steps that fit into the phase's budget."""
    return phase["tokens"] // phase["tokens_per_step"] * phase["tokens_per_step"]


def taught(study: Tree, source: str) -> str | None:
    """The first of the study's phases whose mixture has ``source``; where none has, the first in
    which any arm trains on it. None if no arm does."""
    name = source.removesuffix(TRAINED)
    for arms in ([None], list(study["arms"])):
        for phase in study["phases"]:
            if any(name in mixture_of(study, arm, phase) for arm in arms):
                return phase
    return None


def trained_before(study: Tree, arm: str, source: str, phase: str) -> bool:
    """Whether the mixtures of ``arm`` have ``source`` before ``phase``."""
    earlier = list(study["phases"])[: list(study["phases"]).index(phase)]
    name = source.removesuffix(TRAINED)
    return any(name in mixture_of(study, arm, other) for other in earlier)


def mixture_of(study: Tree, arm: str | None, phase: str) -> Tree:
    """Empty where the arm has no such phase."""
    return (phases_of(study, arm).get(phase) or {}).get("mixture") or {}
