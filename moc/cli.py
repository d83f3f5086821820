"""The command ``moc``: verbs and argument parsing. Heavy imports wait for their verb."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moc import __version__
from moc.errors import ConfigError
from moc.verbs.arguments import add_stored
from moc.verbs.ends import as_command, fail
from moc.verbs.fit import add_fit
from moc.verbs.imports import importing
from moc.verbs.options import port, seeds, words
from moc.verbs.plan import demand_text, plan_options, plan_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; ``as_command`` says which."""
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    overrides = [word for word in extra if "=" in word and not word.startswith("-")]
    if unknown := [word for word in extra if word not in overrides]:
        return fail(f"{unknown[0]!r} is no option of 'moc {arguments.verb}'; see 'moc --help'", 2)

    def act() -> int:
        if overrides and "overrides" not in arguments:
            raise ConfigError(f"'moc {arguments.verb}' takes no {overrides[0]!r}")
        if "overrides" in arguments:
            arguments.overrides += overrides  # those after an option
        return arguments.run(arguments)

    again = "; the same command goes on from the last checkpoint"
    return as_command(act, again=again if arguments.verb == "run" else "")


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"moc: {message}; see '{self.prog} --help'\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="moc", description="Phase-transition forgetting studies of transformers with memory."
    )
    parser.add_argument("--version", action="version", version=f"moc {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("plan", help="what a study will cost, before it starts")
    _takes_study(verb)
    plan_options(verb)
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("run", help="train and evaluate; again: go on where it stopped")
    _takes_study(verb)
    verb.add_argument("--arms", type=words, default=[], help="only these, comma-separated")
    verb.add_argument("--seeds", type=seeds, default=[], help="only these, comma-separated")
    _takes_launcher(verb)
    verb.set_defaults(run=_run)

    verb = verbs.add_parser("tune", help="find every arm's best settings, for 'tuned' in the study")
    _takes_study(verb)
    _takes_launcher(verb)
    verb.set_defaults(run=_tune)

    verb = verbs.add_parser("status", help="where every run of a study is, and how fast")
    verb.add_argument("path", type=Path, metavar="STUDY", help="a study YAML, or its folder")
    verb.add_argument("--watch", action="store_true", help="until all are done")
    verb.set_defaults(run=_status)

    add_stored(verbs, {"eval": _eval, "leakage": _leakage, "generate": _generate})

    verb = verbs.add_parser("report", help="rebuild the report and print the result tables")
    verb.add_argument("path", type=Path, help="a study YAML, its folder, or one of its runs")
    verb.set_defaults(run=_report)
    add_fit(verbs)

    verb = verbs.add_parser("compare", help="the results of several studies in one report")
    verb.add_argument(
        "paths", type=Path, nargs="+", metavar="STUDY", help="a study YAML, or a study's folder"
    )
    verb.add_argument("--baseline", metavar="ARM", help="compare all arms with this one")
    verb.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: compare-<names>, beside the first"
    )
    verb.set_defaults(run=_compare)

    verb = verbs.add_parser("ui", help="browse the results in MLflow, on 127.0.0.1")
    verb.add_argument("--runs-dir", type=Path, default=Path("runs"))
    verb.add_argument("--uri", help="another tracking URI")
    verb.add_argument("--port", type=port, default=5000)
    verb.set_defaults(run=_ui)
    return parser


def _takes_study(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("study", type=Path, help="a study YAML")
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="laid over the file"
    )


def _takes_launcher(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--launch",
        metavar="LAUNCHER",
        help="processes:N (so many runs at once), slurm, ray[:ADDRESS]; default: one after another",
    )


def _study(arguments: argparse.Namespace, *, untuned: bool = False) -> Any:
    from evals.scoring.known_names import check_task_names
    from moc.config.load import load_study

    overrides, check = arguments.overrides, check_task_names
    return load_study(arguments.study, overrides, check=check, untuned=untuned)


def _plan(arguments: argparse.Namespace) -> int:
    text, problems = plan_text(
        _study(arguments), like=arguments.like, detect=arguments.detect, as_json=arguments.json
    )
    print(text)
    for problem in problems:
        fail(problem, 1)
    return 1 if problems else 0


def _run(arguments: argparse.Namespace) -> int:
    study = _study(arguments)
    with importing():
        from moc.errors import nearest
        from moc.launch.build import build_launcher
        from moc.plan.study_plan import plan_study, violations
        from moc.plan.text import render_plan
        from moc.train.distributed import is_main_process
        from moc.train.strategies import num_devices

    for arm in arguments.arms:
        if arm not in study.arms:
            raise ConfigError(f"--arms: no arm {arm!r}; {nearest(arm, list(study.arms))}")
    launcher = build_launcher(arguments.launch, study)
    if launcher is None or launcher.is_here:
        study.trainer.devices = num_devices(study.trainer)
    else:  # this machine may have no GPU, where those of the runs do
        study.trainer.devices = study.trainer.devices or 1
    plan = plan_study(study)
    if problems := violations(plan):
        return fail(problems[0], 1)
    if is_main_process():
        print("\n".join([render_plan(plan), *demand_text(study), ""]), flush=True)
    with importing():
        from moc.report import result_tables
        from moc.study import run_study

    report = run_study(study, arms=arguments.arms, seeds=arguments.seeds, launcher=launcher)
    if is_main_process():
        print(f"\n{result_tables(study.dir)}\n\nreport:  {report}\nbrowse:  make ui   (or: moc ui)")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    study = _study(arguments, untuned=True)
    with importing():
        from moc.launch.build import build_launcher
        from moc.plan.study_plan import plan_study
        from moc.plan.text import render_plan
        from moc.tuning.choice import render_tuned
        from moc.tuning.loop import first_trials, tune_study

    trials = first_trials(study)
    launcher = build_launcher(arguments.launch, trials)
    more = ""
    if (tuning := study.tuning).sampler != "grid":
        how = f"{tuning.sampler}, pruner {tuning.pruner}"
        more = f"; these first, of {tuning.trials} trials of every arm ({how})"
    print(f"{render_plan(plan_study(trials)).splitlines()[0]}{more}", flush=True)
    tuned, path = tune_study(study, launcher=launcher)
    print(f"\n{render_tuned(tuned, path, named=study.tuned is not None)}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from moc.verbs.status import watch_study

    watch_study(arguments.path, again=arguments.watch)
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    with importing():
        from moc.verbs.eval import evaluate_stored

    print(evaluate_stored(arguments.path, arguments.suite, arguments.route_on, arguments.overrides))
    return 0


def _leakage(arguments: argparse.Namespace) -> int:
    with importing():
        from moc.verbs.leakage import leakage_of_stored, render_leakage

    record = leakage_of_stored(arguments.path, data=arguments.data, num_windows=arguments.windows)
    print(json.dumps(record, indent=2) if arguments.json else render_leakage(record))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    with importing():
        from moc.verbs.generate import continue_prompts

    texts = [""] * len(arguments.prompt)
    for row, piece in continue_prompts(
        arguments.path,
        arguments.prompt,
        chat=arguments.chat,
        max_new_tokens=arguments.max_new_tokens,
        stop=arguments.stop,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        policy=arguments.policy,
        window_tokens=arguments.window,
    ):
        texts[row] += piece or ""
        if len(texts) == 1:
            print("\n" if piece is None else piece, end="", flush=True)
        elif piece is None:
            print(f"[{row}] {texts[row]}", flush=True)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from moc.report import build_report, load_results, result_tables
    from moc.store.find import study_dir_of
    from moc.store.rundir import StudyDir
    from moc.tracking.mirror import send_report

    folder = study_dir_of(arguments.path)
    if not StudyDir(folder).runs():
        raise ConfigError(f"{folder}: no run of this study has begun yet")
    results = load_results(folder)
    report = build_report(results)
    print(f"{result_tables(results)}\n\nreport:  {report}")
    if message := send_report(folder):
        print(message)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from moc.verbs.compare import compare

    text, report = compare(arguments.paths, baseline=arguments.baseline, out=arguments.out)
    print(f"{text}\n\nreport:  {report}")
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from moc.tracking.ui import serve_ui

    return serve_ui(arguments.runs_dir, arguments.uri, arguments.port)


if __name__ == "__main__":
    sys.exit(main())
