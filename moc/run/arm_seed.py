"""One arm with one seed: what to train and where it goes, whichever process does it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from moc.config.identity import config_hash
from moc.config.load import load_study
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.data.windows import needed, training_streams
from moc.run.resolve import resolve_study
from moc.store.rundir import RunDir, StudyDir


class ArmSeed:
    """
    Args:
        study: resolved (``resolve_study``).
        name: of the arm.
        tokenizer: the study's.
    """

    def __init__(self, study: StudyConfig, name: str, seed: int, tokenizer: Tokenizer) -> None:
        self.study, self.name, self.seed, self.tokenizer = study, name, seed, tokenizer

    @classmethod
    def open(cls, study_file: Path, name: str, seed: int) -> ArmSeed:
        """All that another process needs is the study's file, the arm's name and the seed.

        Raises:
            ConfigError: if the file or the tokenizer cannot be read.
        """
        study = resolve_study(load_study(study_file))
        return cls(study, name, seed, build_tokenizer(study))

    def siblings(self) -> list[ArmSeed]:
        """The study's other arms with this seed."""
        others = (name for name in self.study.arms if name != self.name)
        return [ArmSeed(self.study, name, self.seed, self.tokenizer) for name in others]

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    @property
    def arm(self) -> ArmConfig:
        return self.study.arms[self.name]

    @property
    def phases(self) -> list[PhaseConfig]:
        return list(self.arm.phases.values())

    @property
    def dir(self) -> RunDir:
        return StudyDir(self.study.dir).run(self.name, self.seed, list(self.arm.phases))

    @cached_property
    def hashes(self) -> list[str]:
        """For every boundary, a hash of all that decides the weights there. Devices are left out: a
        run may go on with others."""
        study = self.study
        hashes = [config_hash(self.arm.model, self.tokenizer.fingerprint, self.seed)]
        for phase in self.phases:
            sources = {
                name: [study.data[name], needed(study, phase, name)] for name in phase.mixture
            }
            hashes.append(config_hash(hashes[-1], sources, phase, study.trainer.precision))
        return hashes

    @cached_property
    def streams(self) -> dict[str, str]:
        """Fingerprint of the tokens of every source that an arm of the study trains on, as they
        were when this was first asked.

        Raises:
            ConfigError: if a source cannot be read.
        """
        return training_streams(self.study, self.tokenizer)

    def data(self, index: int) -> dict[str, str]:
        """Those of ``streams`` that phase ``index`` trains on."""
        return {source: self.streams[source] for source in self.phases[index].mixture}

    def needs_optimizer(self, index: int) -> bool:
        """Whether the phase after boundary ``index`` goes on with the Adam moments there."""
        return any(phase.carry.optimizer for phase in self.phases[index : index + 1])
