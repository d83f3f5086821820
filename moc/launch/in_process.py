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
) -> list[RunHeld | TrainingDiverged]:
    """Bring those of a study's ``runs`` that are ``asked`` for to their end, and score the others
    again where they were last scored in another way: tables must not mix two evaluations.

    Returns:
        One for every run that has not come to its end: another process holds it, or its training
        diverged.

    Raises:
        RunHeld: under several ranks, which would train without the one that found it.
        CheckpointError, StudyInterrupted: see ``execute``.
    """
    passed_over: list[RunHeld | TrainingDiverged] = []
    for run in runs:
        if run not in asked:
            rescore(run, tools)
            continue
        siblings = [other for other in runs if other.seed == run.seed and other is not run]
        try:
            execute(run, tools, siblings)
        except RunHeld as held:
            if launched_ranks() > 1:
                raise
            passed_over.append(held)
            if is_main_process():
                print(f"{run} | passed over: {held}", flush=True)
        except TrainingDiverged as diverged:  # on all ranks at once; the others may be well
            passed_over.append(diverged)
            if is_main_process():
                print(f"{run} | {diverged}", flush=True)
    return passed_over
