"""Replay and joint training, spelled out in the mixtures of an arm's phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from moc.config.schema import ArmConfig, PhaseConfig


def resolve_mixtures(arm: ArmConfig) -> ArmConfig:
    """``arm`` with nothing left of ``joint`` and ``replay`` but the mixtures that they mean.

    ``joint``: every phase's mixture is that of all phases, each weighted by its tokens. ``replay``
    r: 1 - r of the phase's own mixture and r of those that earlier phases bring, weighted by their
    tokens; a ``no_op`` phase has brought nothing that could be repeated. Weights of a changed
    mixture sum to 1. A phase's own sources keep their place at its start, so that the result reads
    the same once it has been saved and laid over the study's phases again.
    """
    phases = {}
    earlier: list[PhaseConfig] = []
    together = _pooled(list(arm.phases.values())) if arm.joint else {}
    for name, phase in arm.phases.items():
        mixture = phase.mixture
        if arm.joint:
            mixture = {source: together[source] for source in [*mixture, *together]}
        elif phase.replay:
            mixture = _blend([(1 - phase.replay, mixture), (phase.replay, _pooled(earlier))])
        phases[name] = replace(phase, mixture=mixture, replay=0.0)
        if not phase.no_op:
            earlier.append(phase)
    return replace(arm, phases=phases, joint=False)


def _pooled(phases: Sequence[PhaseConfig]) -> dict[str, float]:
    tokens = [phase.num_steps() * phase.tokens_per_step for phase in phases]
    shares = [each / sum(tokens) for each in tokens]
    return _blend(zip(shares, (phase.mixture for phase in phases), strict=True))


def _blend(parts: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """The sum of mixtures that sum to 1 each, times their shares."""
    blended: dict[str, float] = {}
    for share, mixture in parts:
        total = sum(mixture.values())
        for source, weight in mixture.items():
            blended[source] = blended.get(source, 0.0) + share * weight / total
    return blended
