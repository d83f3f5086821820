"""A study as it is trained and recorded: shapes solved, mixtures spelled out, devices counted."""

from __future__ import annotations

from dataclasses import replace

from moc.config.schema import StudyConfig
from moc.plan.arms import solved_arms
from moc.train.strategies import num_devices


def resolve_study(study: StudyConfig) -> StudyConfig:
    """Resolving the result again changes nothing.

    Raises:
        ConfigError: if a shape cannot be solved.
    """
    trainer = replace(study.trainer, devices=num_devices(study.trainer))
    return replace(study, arms=solved_arms(study), trainer=trainer)
