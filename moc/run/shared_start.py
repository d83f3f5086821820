"""Arms that begin alike are trained once: what one has done, another takes over.

An arm with a frozen bank from the second phase on, or a control that replays, is the same model as
its sibling until the phases differ. Their boundary hashes say so: they cover the model, the seed
and every setting that decides the weights. Besides the time, this pairs the arms exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from moc.errors import CheckpointError
from moc.run.arm_seed import ArmSeed
from moc.run.pause import pause_of
from moc.run.settings import changed_data
from moc.store.files import read_sound_json, whole_folder, write_json
from moc.store.journal import Journal, read
from moc.store.manifest import check_manifest
from moc.store.rundir import RunDir
from moc.train.checkpoints import phase_of
from moc.train.strategies import total_devices


def begin_as_sibling(run: ArmSeed, siblings: Sequence[ArmSeed]) -> None:
    """Take over what a sibling has done with all that decides the weights of ``run``, which is new.

    Nothing happens to a run that has begun, nor on several devices: between two trainings they have
    no way to wait for one another, and one that looks while another copies would train alone.
    """
    here, trainer = run.dir, run.study.trainer
    if (here.path / "boundaries").is_dir() or here.checkpoints.is_dir():
        return
    if total_devices(trainer) > 1:
        return
    shared = {
        sibling: shared_phases(run.hashes, sibling.hashes, sibling.dir)
        for sibling in siblings
        if changed_data(sibling) is None
    }
    donor = max(shared, key=lambda sibling: shared[sibling], default=None)
    if donor is None:
        return
    count, pause = shared[donor], pause_of(run)
    if pause is not None and not donor.dir.pause(pause.phase, pause.step).is_file():
        count = min(count, pause.phase + pause.at_end)  # it was not scored on the way
    if not count:
        return
    if run.needs_optimizer(count) and not donor.needs_optimizer(count):
        return  # it kept no Adam moments to go on with
    names = ", ".join(here.phases[:count])
    print(f"{run} | {names}: as {donor.name}, not trained again", flush=True)
    take_over(here, donor.dir, donor.name, count)


def shared_phases(own: Sequence[str], other: Sequence[str], donor: RunDir) -> int:
    """How many phases, from the first on, two runs have in common and ``donor`` has finished, given
    the boundary hashes of both."""
    count = 0
    for index in range(1, min(len(own), len(other))):
        scored = (donor.boundary(index) / "evals.json").is_file()
        if own[index] != other[index] or not scored or not _is_whole(donor.boundary(index)):
            break
        count = index
    return count


def _is_whole(boundary: Path) -> bool:
    try:
        check_manifest(boundary)
    except CheckpointError:
        return False  # its own run says so
    return True


def take_over(run: RunDir, donor: RunDir, donor_arm: str, num_phases: int) -> None:
    """Copy what ``donor`` holds of its first ``num_phases`` phases into ``run``, which is new.

    The boundaries come last and one by one, each in one rename: a kill leaves a run that trains
    what is missing.
    """
    phases = ("start", *run.phases[:num_phases])
    for file in donor.path.glob("pauses/*.json"):
        if phase_of(file.with_suffix("")) in phases:
            write_json(run.path / "pauses" / file.name, read_sound_json(file), sync=True)
    for mine, theirs in zip(_journals(run), _journals(donor), strict=True):
        mine.path.unlink(missing_ok=True)
        kept = [record for record in read(theirs.path) if record.get("phase") in phases]
        for record in kept:
            mine.append(record)
        if kept:
            mine.commit()
        mine.close()
    for index in range(num_phases + 1):
        with whole_folder(run.boundary(index)) as copy:
            shutil.copytree(donor.boundary(index), copy, dirs_exist_ok=True)
    write_json(run.shared, {"arm": donor_arm, "phases": list(phases[1:])}, sync=True)


def _journals(run: RunDir) -> tuple[Journal, ...]:
    return run.journal(), run.memory_use(), run.revivals()
