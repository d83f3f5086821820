"""Runs, one after another, in this process; several such processes can share a study."""

from __future__ import annotations

from collections.abc import Sequence

from moc.errors import RunHeld, TrainingDiverged
from moc.run.arm_seed import ArmSeed
from moc.run.execute import execute, rescore
from moc.run.tools import Tools
from moc.train.distributed import is_main_process, launched_ranks


def run_in_process(
    runs: Sequence[ArmSeed], asked: Sequence[ArmSeed], tools: Tools
) -> RunHeld | TrainingDiverged | None:
    """Bring those of a study's ``runs`` that are ``asked`` for to their end, and score the others
    again where they were last scored in another way: tables must not mix two evaluations.

    Returns:
        What is to be said once there is a report, if a run has not come to its end: its training
        diverged, or another process holds it.

    Raises:
        RunHeld: under several ranks, which would train without the one that found it.
        CheckpointError, StudyInterrupted: see ``execute``.
    """
    passed_over: list[RunHeld] = []
    diverged: TrainingDiverged | None = None
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
        except TrainingDiverged as error:  # on all ranks at once; the others may be well
            diverged = diverged or error
            if is_main_process():
                print(f"{run} | {error}", flush=True)
    if diverged or not passed_over:
        return diverged
    return RunHeld(
        f"{len(passed_over)} of {len(asked)} runs are in other hands; the first: {passed_over[0]}"
    )
