"""One run in a process of its own, which a launcher starts: a fork of one that has imported this
(``run_forked``), or ``python -m moc.launch.worker [--tied] STUDY_YAML ARM SEED``, the study's file
in its folder.

It exits as ``moc run`` does, with the same last line. MLflow gets what it writes from whoever
started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from moc.bench.peak import measure_matmul_peak
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.launch.task import Task
from moc.run.arm_seed import ArmSeed
from moc.run.execute import execute
from moc.run.tools import Tools
from moc.store.files import read_sound_json
from moc.store.rundir import StudyDir
from moc.train.signals import on_stop_signal, stop_at_once
from moc.train.strategies import device_of
from moc.verbs.ends import as_command

TIED = "--tied"  # it saves and ends when its standard input closes


def main(argv: Sequence[str]) -> int:
    on_stop_signal(stop_at_once)
    is_tied = argv[0] == TIED
    if is_tied:
        threading.Thread(target=_stop_at_the_end_of_input, daemon=True).start()
    file, arm, seed = argv[is_tied:]
    return as_command(
        lambda: _work(Path(file), arm, int(seed), elsewhere=is_tied),
        again="; the same command goes on from the last checkpoint",
    )


def run_forked(task: Task, environment: dict[str, str]) -> NoReturn:
    """``task`` in this process, a fork, which then ends."""
    os.environ.update(environment)
    os.setsid()  # Ctrl-C is for whoever started it
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, number)
    try:
        code = main(task.arguments)
    except Exception:  # told as an interpreter tells it, at its end: without what must not be said
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.exit(code)


def _work(file: Path, arm: str, seed: int, elsewhere: bool) -> int:
    run = ArmSeed.open(file, arm, seed)
    if elsewhere:  # the study's own figure is of another machine
        bf16 = run.study.trainer.precision == "bf16-mixed"
        dtype = torch.bfloat16 if bf16 else torch.float32
        peak_flops: float | None = measure_matmul_peak(device_of(run.study.trainer), dtype)
    else:
        environment = read_sound_json(StudyDir(run.study.dir).environment)
        peak_flops = environment.get("matmul_peak_flops")
    tools = Tools(BoundaryEvaluator(run.study, run.tokenizer), peak_flops)
    execute(run, tools, run.siblings())
    return 0


def _stop_at_the_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
