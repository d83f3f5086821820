"""What makes a study whose keys and types are right still unusable."""

from __future__ import annotations

from collections.abc import Sequence

from moc.config.assay import check_assay
from moc.config.controls import check_controls
from moc.config.names import check_names
from moc.config.schema import ArmConfig, PhaseConfig, ProbeConfig, StudyConfig
from moc.config.tuning import check_tuning
from moc.errors import ConfigError, nearest
from moc.model.validate import validate_model
from moc.ranges import check_ranges


def validate_study(study: StudyConfig) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: naming the setting, its value and the remedy.
    """
    for section in ("arms", "phases", "data", "seeds"):
        if not getattr(study, section):
            raise ConfigError(f"a study needs at least one entry under {section!r}")
    check_names(study)
    check_ranges(study)
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"seeds {study.seeds} are not all different")
    for name, source in study.data.items():
        if source.documents == "questions":
            _check_questions(study, name)
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
        _check_matching(study, arm_name, arm)
        if arm.joint and (replaying := [key for key, p in arm.phases.items() if p.replay]):
            raise ConfigError(
                f"{where}.joint trains every phase on all data; set "
                f"{where}.phases.{replaying[0]}.replay to 0"
            )
        earlier: list[PhaseConfig] = []
        for phase_name, phase in arm.phases.items():
            _validate_phase(study, phase, earlier, f"{where}.phases.{phase_name}")
            earlier.append(phase)
    check_controls(study)
    if study.assay is not None:
        sizes = list(dict.fromkeys(a.size for a in study.arms.values() if a.size is not None))
        check_assay(study.assay, {n: arm.twin_of for n, arm in study.arms.items()}, sizes)
    if study.tuning is not None:
        check_tuning(study.tuning, [arm.size for arm in study.arms.values()])
    for name, probe in study.probes.items():
        _validate_probe(study, probe, f"probes.{name}")


def _check_matching(study: StudyConfig, name: str, arm: ArmConfig) -> None:
    where = f"arms.{name}"
    if arm.iso_flop is not None and arm.iso_param is not None:
        raise ConfigError(
            f"{where} has both iso_flop and iso_param; one shape cannot meet both: make two arms"
        )
    for setting, match in (("iso_flop", arm.iso_flop), ("iso_param", arm.iso_param)):
        if match is not None and (match.target not in study.arms or match.target == name):
            others = [other for other in study.arms if other != name]
            raise ConfigError(
                f"{where}.{setting}.target {match.target!r} is no other arm; "
                f"{nearest(match.target, others)}"
            )


def _check_questions(study: StudyConfig, name: str) -> None:
    """Whose questions are trained depends on all of these; others would train on test questions."""
    source = study.data[name]
    if source.kind != "facts":
        raise ConfigError(f"data.{name}.documents: a source of kind {source.kind} has no questions")
    for other_name, other in study.data.items():
        if other.kind != "facts" or other.seed != source.seed:
            continue
        for key in ("num_people", "question_share"):
            mine, theirs = getattr(source, key), getattr(other, key)
            if mine != theirs:
                raise ConfigError(
                    f"data.{name}.{key} {mine} must be data.{other_name}'s {theirs}: with another "
                    "one, questions that evaluations ask would be trained"
                )


def _validate_phase(
    study: StudyConfig, phase: PhaseConfig, earlier: Sequence[PhaseConfig], where: str
) -> None:
    if not phase.mixture:
        raise ConfigError(f"{where}.mixture is empty; name at least one of {', '.join(study.data)}")
    for source in phase.mixture:
        if source not in study.data:
            raise ConfigError(
                f"{where}.mixture names {source!r}, not a source under 'data'; "
                f"{nearest(source, list(study.data))}"
            )
    if phase.tokens_per_step % phase.context_length:
        raise ConfigError(
            f"{where}.tokens_per_step {phase.tokens_per_step} is no multiple of "
            f"context_length {phase.context_length}"
        )
    if phase.num_steps() < 1:
        raise ConfigError(f"{where}.tokens {phase.tokens} is less than one step's tokens")
    _check_replay(phase, earlier, where)
    if phase.carry.optimizer and earlier:
        lazy, before_lazy = phase.optimizer.lazy_bank, earlier[-1].optimizer.lazy_bank
        if lazy != before_lazy:
            raise ConfigError(
                f"{where}.carry.optimizer: the phase before has optimizer.lazy_bank {before_lazy}, "
                f"this one {lazy}, and their moments differ; make them equal"
            )
    for before in earlier if phase.carry.data_position else ():
        if (before.context_length, before.mixture) != (phase.context_length, phase.mixture):
            raise ConfigError(
                f"{where}.carry.data_position needs the context_length and mixture of every "
                "earlier phase: a position in another order of samples means nothing"
            )


def _check_replay(phase: PhaseConfig, earlier: Sequence[PhaseConfig], where: str) -> None:
    if phase.carry.data_position and (phase.replay or any(before.replay for before in earlier)):
        raise ConfigError(
            f"{where}.carry.data_position: with replay the mixtures of phases differ, and a "
            "position in another order of samples means nothing"
        )
    if not phase.replay:
        return
    if all(before.no_op for before in earlier):
        raise ConfigError(
            f"{where}.replay {phase.replay}: no phase before it trains, so there is nothing to "
            "repeat; set it to 0"
        )


def _validate_probe(study: StudyConfig, probe: ProbeConfig, where: str) -> None:
    _validate_phase(study, probe.phase, (), f"{where}.phase")
    for boundary in probe.after:
        if boundary not in study.phases:
            raise ConfigError(
                f"{where}.after: no phase {boundary!r}; {nearest(boundary, list(study.phases))}"
            )
