"""One run in a process of its own, which a launcher starts:
``python -m moc.launch.worker STUDY_YAML ARM SEED``, the study's file in its folder.

It exits as ``moc run`` does, with the same last line. MLflow gets what it writes from whoever
started it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moc.evaluate.evaluator import BoundaryEvaluator
from moc.run.arm_seed import ArmSeed
from moc.run.execute import execute
from moc.run.tools import Tools
from moc.store.files import read_sound_json
from moc.store.rundir import StudyDir
from moc.train.signals import on_stop_signal, stop_at_once
from moc.verbs.ends import as_command


def main(argv: Sequence[str]) -> int:
    on_stop_signal(stop_at_once)
    file, arm, seed = argv
    return as_command(
        lambda: _work(Path(file), arm, int(seed)),
        again="; the same command goes on from the last checkpoint",
    )


def _work(file: Path, arm: str, seed: int) -> int:
    run = ArmSeed.open(file, arm, seed)
    peak_flops = read_sound_json(StudyDir(run.study.dir).environment).get("matmul_peak_flops")
    tools = Tools(BoundaryEvaluator(run.study, run.tokenizer), peak_flops)
    execute(run, tools, run.siblings())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
