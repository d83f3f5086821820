"""Runs, one after another, in this process; several such processes can share a study."""

from __future__ import annotations

from collections.abc import Sequence

from moc.errors import RunHeld
from moc.run.arm_seed import ArmSeed
from moc.run.execute import execute, rescore
from moc.run.tools import Tools
from moc.train.distributed import is_main_process, launched_ranks


def run_in_process(
    runs: Sequence[ArmSeed], asked: Sequence[ArmSeed], tools: Tools
) -> RunHeld | None:
    """Bring those of a study's ``runs`` that are ``asked`` for to their end, and score the others
    again where they were last scored in another way: tables must not mix two evaluations.

    Returns:
        What is to be said once there is a report, if another process holds a run: it was passed
        over.

    Raises:
        RunHeld: under several ranks, which would train without the one that found it.
        CheckpointError, StudyInterrupted, TrainingDiverged: see ``execute``.
    """
    passed_over = []
    for run in runs:
        if run not in asked:
            rescore(run, tools)
            continue
        try:
            execute(run, tools, run.siblings())
        except RunHeld as held:
            if launched_ranks() > 1:
                raise
            passed_over.append(held)
            if is_main_process():
                print(f"{run} | passed over: {held}", flush=True)
    if not passed_over:
        return None
    return RunHeld(
        f"{len(passed_over)} of {len(asked)} runs are in other hands; the first: {passed_over[0]}"
    )
