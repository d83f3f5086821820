"""What makes a study whose keys and types are right still unusable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from moc.errors import ConfigError, nearest
from moc.model.config import validate_model
from moc.schema import PhaseConfig, StudyConfig

_STUDY_MINIMA: dict[str, float] = {
    "evals.num_items": 1,
    "evals.batch_size": 1,
    "evals.context_length": 2,
    "evals.validation_tokens": 1,
    "evals.leakage_windows": 0,
    "tokenizer.vocab_size": 260,  # every byte and the control tokens
    "tokenizer.training_bytes": 1,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.num_workers": 0,
    "trainer.log_every_steps": 1,
    "trainer.checkpoint_every_steps": 1,
    "trainer.keep_last": 1,
}
_SOURCE_MINIMA: dict[str, float] = {
    "num_people": 1,
    "num_phrasings": 1,
    "question_share": 0,
    "question_ratio": 0,
    "num_examples": 1,
}
_PHASE_MINIMA: dict[str, float] = {
    "tokens": 1,
    "tokens_per_step": 1,
    "context_length": 2,
    "micro_batch": 1,
    "revive_every_steps": 0,
    "optimizer.clip_norm": 0,
    "schedule.warmup_steps": 0,
    "schedule.decay_fraction": 0,
    "schedule.final_ratio": 0,
}


def validate_study(study: StudyConfig) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    for section in ("arms", "phases", "data", "seeds"):
        if not getattr(study, section):
            raise ConfigError(f"a study needs at least one entry under {section!r}")
    for word in (study.name, *study.arms, *study.phases):  # they name folders
        if not re.fullmatch(r"\w[\w.-]*", word):
            raise ConfigError(
                f"{word!r} cannot name a study, arm or phase; use letters, digits, '_', '-', '.'"
            )
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"seeds {study.seeds} are not all different")
    _check_minima(study, _STUDY_MINIMA, "")
    for name, source in study.data.items():
        _check_minima(source, _SOURCE_MINIMA, f"data.{name}.")
    for arm_name, arm in study.arms.items():
        where = f"arms.{arm_name}"
        try:
            validate_model(arm.model)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        for phase_name in arm.phases:
            if phase_name not in study.phases:
                suggestion = nearest(phase_name, list(study.phases))
                raise ConfigError(f"{where}.phases: no phase {phase_name!r}; {suggestion}")
        if study.tokenizer.path is None and study.tokenizer.vocab_size > arm.model.vocab_size:
            raise ConfigError(
                f"tokenizer.vocab_size {study.tokenizer.vocab_size} is more than "
                f"{where}.model.vocab_size {arm.model.vocab_size}"
            )
        if arm.iso_flop is not None and (
            arm.iso_flop.target not in study.arms or arm.iso_flop.target == arm_name
        ):
            others = [name for name in study.arms if name != arm_name]
            raise ConfigError(
                f"{where}.iso_flop.target {arm.iso_flop.target!r} is no other arm; "
                f"{nearest(arm.iso_flop.target, others)}"
            )
        earlier: list[PhaseConfig] = []
        for phase_name, phase in arm.phases.items():
            _validate_phase(study, phase, earlier, f"{where}.phases.{phase_name}")
            earlier.append(phase)


def _validate_phase(
    study: StudyConfig, phase: PhaseConfig, earlier: Sequence[PhaseConfig], where: str
) -> None:
    _check_minima(phase, _PHASE_MINIMA, f"{where}.")
    if not phase.mixture:
        raise ConfigError(f"{where}.mixture is empty; name at least one of {', '.join(study.data)}")
    for source, weight in phase.mixture.items():
        if source not in study.data:
            raise ConfigError(
                f"{where}.mixture names {source!r}, not a source under 'data'; "
                f"{nearest(source, list(study.data))}"
            )
        if weight <= 0:
            raise ConfigError(f"{where}.mixture.{source} must be positive, not {weight}")
    if phase.context_length < 2 or phase.tokens_per_step % phase.context_length:
        raise ConfigError(
            f"{where}.tokens_per_step {phase.tokens_per_step} is no multiple of "
            f"context_length {phase.context_length}"
        )
    if phase.num_steps() < 1:
        raise ConfigError(f"{where}.tokens {phase.tokens} is less than one step's tokens")
    for before in earlier if phase.carry.data_position else ():
        if (before.context_length, before.mixture) != (phase.context_length, phase.mixture):
            raise ConfigError(
                f"{where}.carry.data_position needs the context_length and mixture of every "
                "earlier phase: a position in another order of samples means nothing"
            )


def _check_minima(config: Any, minima: dict[str, float], where: str) -> None:
    for key, minimum in minima.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not value >= minimum:
            raise ConfigError(f"{where}{key} must be at least {minimum}, not {value}")
