"""The main job: arms x seeds x phases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from evals.scoring.study_tasks import TaskItems, task_items
from moc.bench.peak import measure_matmul_peak
from moc.config.identity import differences
from moc.config.load import save_study
from moc.config.names import check_folders
from moc.config.schema import StudyConfig
from moc.data.module import prepare
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.errors import ConfigError, RunHeld, nearest
from moc.evaluate.asked import check_evals
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.launch.in_process import run_in_process
from moc.launch.launcher import Launcher
from moc.launch.supervise import supervise
from moc.plan.study_plan import plan_study
from moc.report import build_report
from moc.run.arm_seed import ArmSeed
from moc.run.environment import describe_environment
from moc.run.resolve import resolve_study
from moc.run.settings import (
    changed_settings,
    check_data,
    check_nothing_hides,
    check_settings,
    in_short,
)
from moc.run.tools import Tools
from moc.store.files import (
    read_sound_json,
    seal_text,
    whole_file,
    whole_folder,
    write_json,
    write_lines,
    write_text,
)
from moc.store.lock import Holder, holder_of, remedy
from moc.store.rundir import StudyDir
from moc.tracking.mirror import Tracker
from moc.train.distributed import is_main_process
from moc.train.ranks import watching
from moc.train.signals import handlers_kept, on_stop_signal, stop_at_once
from moc.train.strategies import device_of


def run_study(
    study: StudyConfig,
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    launcher: Launcher | None = None,
    report: bool = True,
) -> Path:
    """Train and evaluate every arm and seed (or those named), then write the report.

    What is complete is skipped, and what was interrupted goes on from its last checkpoint. Several
    processes can work on one study: each takes the runs that nobody holds. Under several ranks
    every rank calls this.

    Args:
        launcher: starts the runs as tasks; None: they go one after another in this process.
        report: false leaves out the report, for a study that is not done with this.

    Returns:
        The report's path; the study's folder without one.

    Raises:
        ConfigError: for unknown arms or tasks, data that cannot be had, or a folder that holds
            runs of other settings, of other data, or that the study does not name; before any file
            of the study changes.
        RunFailed: if a task cannot be brought to its end; the others are done.
        RunHeld: if another process works on a run that was asked for; the others are done. A
            launcher waits for it.
        CheckpointError: if what is on disk is damaged beyond what can be passed over.
        StudyInterrupted, KeyboardInterrupt: when asked to stop; the state is on disk.
        TrainingDiverged: if a run had several updates in a row that were not finite; the others are
            done.
    """
    _check_names(study, arms, seeds)
    check_folders(study)
    check_evals(study)
    folder = StudyDir(study.dir)
    folder.check_format()
    study = resolve_study(study)  # what is saved and tracked is what is trained
    tracker = Tracker(study) if is_main_process() else None
    with handlers_kept(), watching(study.trainer):
        on_stop_signal(stop_at_once)
        if (num_threads := launcher.cpus if launcher else study.launch.cpus) is not None:
            torch.set_num_threads(num_threads)
        try:
            tokenizer = build_tokenizer(study)
            _check_vocabulary(study, tokenizer)
            runs = [
                ArmSeed(study, name, seed, tokenizer) for seed in study.seeds for name in study.arms
            ]
            asked = [
                run
                for run in runs
                if run.seed in (seeds or study.seeds) and run.name in (arms or study.arms)
            ]
            if launcher is None:
                _check_free(asked)
            check_nothing_hides(study)
            for run in runs:
                check_settings(run)
            evaluator = BoundaryEvaluator(study, tokenizer)
            datasets = _build_data(runs, evaluator)
            for run in runs:
                check_data(run)
            peak_flops = None
            if is_main_process():
                peak_flops = _matmul_peak(study)
                items = dict(task_items(study))
                with folder.lock():  # from here on the study's folder is written to
                    _describe(study, tokenizer, items, datasets, peak_flops)
            if tracker is not None:
                tracker.start()
            tools = Tools(evaluator, peak_flops, tracker.sync if tracker else lambda: None)
            if launcher is None:
                left: RuntimeError | None = run_in_process(runs, asked, tools)
            else:
                left = supervise(launcher, runs, asked, tools)
            page = study.dir
            if report and is_main_process():
                with folder.lock():
                    page = build_report(study.dir)
        finally:
            if tracker is not None and (message := tracker.close()):
                print(message, flush=True)
    if left is not None:
        raise left
    return page


def _check_names(study: StudyConfig, arms: Sequence[str], seeds: Sequence[int]) -> None:
    for name in arms:
        if name not in study.arms:
            raise ConfigError(f"no arm {name!r} in this study; {nearest(name, list(study.arms))}")
    for seed in seeds:
        if seed not in study.seeds:
            raise ConfigError(f"seed {seed} is not among the study's seeds {study.seeds}")


def _check_vocabulary(study: StudyConfig, tokenizer: Tokenizer) -> None:
    for name, arm in study.arms.items():
        if tokenizer.vocab_size > arm.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, more than "
                f"arms.{name}.model.vocab_size {arm.model.vocab_size}"
            )


def _check_free(asked: Sequence[ArmSeed]) -> None:
    """Better known at once than after minutes of preparing, if there is nothing to do here."""
    holders = [holder_of(run.dir.path) for run in asked] if is_main_process() else []
    if holders and all(holders):
        more = f" (and {len(asked) - 1} more)" if len(asked) > 1 else ""
        run, holder = asked[0], holders[0]
        assert holder is not None
        raise RunHeld(f"{run.dir.path}{more} is held by {holder}{remedy(holder, run.dir.path)}")


def _build_data(runs: Sequence[ArmSeed], evaluator: BoundaryEvaluator) -> dict[str, dict[str, str]]:
    """Tokenise what phases and probes train on, and what is scored; fingerprints of what phases
    train on, by phase and source."""
    datasets: dict[str, dict[str, str]] = {}
    for run in runs:
        for index, name in enumerate(run.arm.phases):
            datasets.setdefault(name, {}).update(run.data(index))
    for probe in evaluator.study.probes.values():
        prepare(evaluator.study, probe.phase, evaluator.tokenizer)
    assert evaluator.eval_hash  # reads the validation text
    return datasets


def _matmul_peak(study: StudyConfig) -> float:
    bf16 = study.trainer.precision == "bf16-mixed"
    return measure_matmul_peak(device_of(study.trainer), torch.bfloat16 if bf16 else torch.float32)


def _describe(
    study: StudyConfig,
    tokenizer: Tokenizer,
    items: TaskItems,
    datasets: dict[str, dict[str, str]],
    peak: float,
) -> None:
    """Write the study's own files, unless a process that works on it has written them.

    Raises:
        ConfigError: if it works with other settings or data.
    """
    folder = StudyDir(study.dir)
    if (holder := _somebody(folder)) is not None:
        known = read_sound_json(folder.datasets) or datasets
        if changes := changed_settings(study) + differences(known, datasets, "data of phases"):
            raise ConfigError(
                f"{study.dir} is being run with other settings{in_short(changes)} by {holder}; "
                "wait for it, or give the study another name (name=...)"
            )
        return
    with whole_file(folder.config, sync=True) as partial:
        save_study(study, partial)
        seal_text(partial)
    if study.tuned:
        write_text(folder.tuning, Path(study.tuned).read_text())
    with whole_folder(folder.tokenizer) as partial:
        tokenizer.save(partial)
    for name, records in items.items():
        write_lines(folder.tasks / f"{name}.jsonl", records)
    write_json(folder.plan, json.loads(plan_study(study).to_json()))
    write_json(folder.datasets, datasets)
    write_json(folder.environment, describe_environment(device_of(study.trainer), peak))


def _somebody(folder: StudyDir) -> Holder | None:
    """A process that works on one of the study's runs."""
    return next((holder for run in folder.runs() if (holder := holder_of(run.path))), None)
