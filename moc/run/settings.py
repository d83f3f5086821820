"""Whether what is on disk of a run was trained with the settings and the data of today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moc.config.identity import differences
from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.data.tokenizer import Tokenizer
from moc.data.windows import needed
from moc.errors import CheckpointError, ConfigError, DamagedFile, FormatError
from moc.run.arm_seed import ArmSeed
from moc.store.files import read_text
from moc.store.manifest import read_manifest
from moc.store.rundir import StudyDir
from moc.train.checkpoints import checkpoints_of, phase_of

_ANOTHER_NAME = "give the study another name (name=...)"


def check_nothing_hides(study: StudyConfig) -> None:
    """What the study does not name would stay on disk and vanish from its report.

    Raises:
        ConfigError: if the folder holds a run of another arm or seed, or another phase of a run.
    """
    for run in StudyDir(study.dir).runs():
        if run.arm not in study.arms:
            what, folder = f"arm {run.arm!r}", run.path.parent
        elif run.seed not in study.seeds:
            what, folder = f"seed {run.seed} of arm {run.arm!r}", run.path
        else:
            phases = list(study.arms[run.arm].phases)
            known = [run.boundary_name(0), *phases]
            others = [b.path for b in run.boundaries() if known[b.index :][:1] != [b.name]]
            others += [
                folder
                for folder in run.checkpoints.glob("*-*")
                if phase_of(folder) not in (None, *phases)
            ]
            if not others:
                continue
            what, folder = f"another phase of arm {run.arm!r}", min(others)
        raise ConfigError(
            f"{folder} holds {what}, which this study does not name (its report would not show "
            f"it): name it again, {_ANOTHER_NAME}, or remove that folder"
        )


def check_settings(run: ArmSeed) -> None:
    """
    Raises:
        ConfigError: if the folder holds weights that were trained with other settings.
        FormatError: if it was written in another format.
    """
    for index, folder, manifest in _manifests(run):
        if manifest["config_hash"] == run.hashes[index]:
            continue
        changes = _what_differs(run)
        if not changes and (tokenizer := _changed_tokenizer(run)) is not None:
            raise ConfigError(f"{folder} was trained with another tokenizer: {tokenizer}")
        raise ConfigError(
            f"{folder} was trained with other settings{in_short(changes)}; {_ANOTHER_NAME}, or "
            f"remove {run.study.dir / 'arms'}"
        )


def check_data(run: ArmSeed) -> None:
    """
    Raises:
        ConfigError: if the folder holds weights that were trained on other data; naming the source.
    """
    if (message := changed_data(run)) is not None:
        raise ConfigError(message)


def changed_data(run: ArmSeed) -> str | None:
    """Which weights of ``run`` were trained on other data than there are today; None if none."""
    for index, folder, manifest in _manifests(run):
        for source, trained_on in manifest.get("data", {}).items():
            if run.streams.get(source) != trained_on:
                phase = run.dir.boundary_name(index)
                where = f"{folder} was trained on other text (arm {run.name}, phase {phase})"
                return f"{where}: {_has_changed(run, source)}"
    return None


def check_streams(run: ArmSeed, index: int, found: Mapping[str, str]) -> None:
    """
    Args:
        found: fingerprint of each source's tokens that phase ``index`` is about to train on.

    Raises:
        ConfigError: if they are not those that the study was started with.
    """
    for source, expected in run.data(index).items():
        if found[source] != expected:
            where = f"arm {run.name}, phase {run.dir.phases[index]}"
            raise ConfigError(f"{where}: since the start, {_has_changed(run, source)}")


def changed_settings(study: StudyConfig) -> list[str]:
    """``key: old, now new`` for what decides results and was another when the study was last run;
    machines may differ."""
    before = last_run(study)
    if before is None:
        return []
    parts = ("arms", "seeds", "data", "tokenizer", "evals", "probes")
    return [line for part in parts for line in _changes(before, study, part)]


def in_short(changes: list[str]) -> str:
    """The first two in brackets; empty if there are none."""
    more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
    return f" ({'; '.join(changes[:2])}{more})" if changes else ""


def _manifests(run: ArmSeed) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """What is on disk of ``run`` and says with what it was trained: the index of the boundary that
    it is or leads to, its folder and its manifest.

    Raises:
        FormatError: if it was written in another format.
    """
    for index in range(len(run.hashes)):
        found = [run.dir.boundary(index)]
        if index:
            found += checkpoints_of(run.dir.checkpoints, run.dir.boundary_name(index))
        for folder in found:
            if not (folder / "manifest.json").is_file():
                continue
            try:
                manifest = read_manifest(folder)
            except FormatError:
                raise
            except CheckpointError:
                continue  # whoever needs this folder explains
            yield index, folder, manifest


def _what_differs(run: ArmSeed) -> list[str]:
    """What decides the weights of ``run`` and has changed since the study was last run, as far as
    that is known."""
    study, before = run.study, last_run(run.study)
    if before is None:
        return []
    arm = before.arms.get(run.name)
    sources = list(dict.fromkeys(s for phase in run.phases for s in phase.mixture))
    parts: list[tuple[Any, Any, str]] = [
        (arm and arm.model, run.arm.model, f"arms.{run.name}.model"),
        (arm and arm.phases, run.arm.phases, f"arms.{run.name}.phases"),
        (before.tokenizer, study.tokenizer, "tokenizer"),
        *((before.data.get(s), study.data[s], f"data.{s}") for s in study.data),
        (before.trainer.precision, study.trainer.precision, "trainer.precision"),
        *(
            (
                _most_read(before, source),
                _most_read(study, source),
                f"tokens or documents of data.{source} that some arm reads, which decide its order",
            )
            for source in sources
        ),
    ]
    return [line for part in parts for line in differences(*part)]


def _most_read(study: StudyConfig, source: str) -> int:
    phases = [p for arm in study.arms.values() for p in arm.phases.values() if source in p.mixture]
    return sum(needed(study, phases[0], source)) if phases else 0


def _changed_tokenizer(run: ArmSeed) -> str | None:
    """Why the tokenizer is another under the same settings; None if it is not, or nobody knows."""
    try:
        before = Tokenizer.saved(StudyDir(run.study.dir).tokenizer)
    except DamagedFile:
        return None
    if before.fingerprint == run.tokenizer.fingerprint:
        return None
    if (path := run.study.tokenizer.path) is not None:
        return f"tokenizer.path {path} has changed; put the old one back, or {_ANOTHER_NAME}"
    changed = [s for s, text in run.tokenizer.texts.items() if before.texts.get(s) != text]
    return f"its text, {_has_changed(run, changed[0])}" if changed else None


def _has_changed(run: ArmSeed, source: str) -> str:
    config = run.study.data[source]
    if config.kind in ("text", "chat"):
        what = config.path or f"the dataset {config.name}"
        return f"data.{source} ({what}) has changed; put the old one back, or {_ANOTHER_NAME}"
    return (
        f"data.{source} is generated otherwise by this version of moc; go on with the version that "
        f"wrote it, or {_ANOTHER_NAME}"
    )


def last_run(study: StudyConfig) -> StudyConfig | None:
    """The study as it was when it was last run; None if that is not known."""
    path = StudyDir(study.dir).config
    if not path.is_file():
        return None
    try:
        read_text(path, "")
        return load_study(path, stored=True)
    except (ConfigError, DamagedFile):
        return None  # it is written anew


def _changes(before: StudyConfig, study: StudyConfig, part: str) -> list[str]:
    return differences(getattr(before, part), getattr(study, part), part)
