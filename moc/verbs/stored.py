"""A stored study's models, for the verbs: found, checked and loaded here alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moc.config.schema import StudyConfig
from moc.store.find import boundary_folders, study_of
from moc.store.rundir import StudyDir

if TYPE_CHECKING:
    from moc.data.tokenizer import Tokenizer
    from moc.model import Transformer


class Stored(NamedTuple):
    """The boundaries that a path stands for, and the study that they belong to."""

    study: StudyConfig
    study_dir: StudyDir
    boundaries: list[Path]  # folders, in order; the last is what a run's folder stands for

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the study was trained with.

        Raises:
            DamagedFile: if its files are damaged.
        """
        from moc.data.tokenizer import Tokenizer

        return Tokenizer.saved(self.study_dir.tokenizer)

    def load(self, boundary: Path) -> tuple[Transformer, str]:
        """The model of one of ``boundaries``, on the study's device, and its weights' SHA-256.

        Raises:
            CheckpointError: if the files are damaged.
        """
        from moc.model import load_model
        from moc.store.manifest import check_manifest
        from moc.train.strategies import device_of

        fingerprint = check_manifest(boundary)["sha256"]["model.safetensors"]
        return load_model(boundary).to(device_of(self.study.trainer)), fingerprint


def find_stored(path: Path, overrides: Sequence[str] = ()) -> Stored:
    """What ``path``, a boundary's folder or a seed's, stands for; nothing is loaded yet.

    Args:
        overrides: ``key=value`` laid over the study.

    Raises:
        ConfigError: if there is no model, or an override cannot be used.
    """
    boundaries = boundary_folders(path)
    study, folder = study_of(path, overrides)
    return Stored(study, StudyDir(folder), boundaries)
