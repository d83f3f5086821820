"""The command ``moc``: verbs and argument parsing. Heavy imports wait for their verb."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moc import __version__
from moc.bench.heap import keep_freed_memory
from moc.config.secrets import hide_in_output, public
from moc.errors import EXPLAINED, ConfigError, StudyInterrupted, Terminated, machine_fault
from moc.verbs.fit import add_fit
from moc.verbs.options import count, port, seed, seeds, share, temperature, words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    0: done. 1: it failed; one line says what is safe (a traceback: a bug of ours). 2: the command
    or its study cannot be used. 130 after Ctrl-C, 143 after SIGTERM: stopped, run it again to go
    on. 141: nobody reads what is printed. torchrun turns whatever a rank returns into 1.
    """
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    overrides = [word for word in extra if "=" in word and not word.startswith("-")]
    if unknown := [word for word in extra if word not in overrides]:
        return _fail(f"{unknown[0]!r} is no option of 'moc {arguments.verb}'; see 'moc --help'", 2)
    keep_freed_memory()
    hide_in_output()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if overrides and "overrides" not in arguments:
            raise ConfigError(f"'moc {arguments.verb}' takes no {overrides[0]!r}")
        if "overrides" in arguments:
            arguments.overrides += overrides  # those after an option
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        again = "; the same command goes on from the last checkpoint"
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        return _fail(f"stopped{again if arguments.verb == 'run' else ''}", 128 + number)
    except BrokenPipeError:  # nor does anybody read what Python would write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _explain(error)


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
    verb.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    verb.set_defaults(run=_plan)

    verb = verbs.add_parser("run", help="train and evaluate; again: go on where it stopped")
    _takes_study(verb)
    verb.add_argument("--arms", type=words, default=[], help="only these, comma-separated")
    verb.add_argument("--seeds", type=seeds, default=[], help="only these, comma-separated")
    verb.set_defaults(run=_run)

    verb = verbs.add_parser("eval", help="score a boundary's checkpoint, or all of a run's")
    verb.add_argument("path", type=Path, help="a folder below .../boundaries, or a seed's folder")
    verb.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="evals.<key> to score by"
    )
    verb.add_argument(
        "--suite",
        default="study",
        help="'study' (its own tasks), 'paper', or any task or group of lm-eval",
    )
    verb.add_argument(
        "--route-on",
        choices=["context", "full", "both"],
        help="whether an answer may steer the routing that scores it (scope sequence)",
    )
    verb.set_defaults(run=_eval)

    verb = verbs.add_parser("leakage", help="how much a model gains by routing on later tokens")
    verb.add_argument("path", type=Path, help="a folder below .../boundaries, or a seed's folder")
    verb.add_argument(
        "--data", nargs="+", default=[], help="the study's sources by name, or files of text"
    )
    verb.add_argument("--windows", type=count, help="per source; default: as many as in the study")
    verb.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    verb.set_defaults(run=_leakage)

    verb = verbs.add_parser("generate", help="continue a prompt")
    verb.add_argument("path", type=Path, help="a folder below .../boundaries, or a seed's folder")
    verb.add_argument(
        "--prompt", required=True, action="append", help="the text to go on from; repeat for more"
    )
    verb.add_argument("--chat", action="store_true", help="the prompt is a user's turn in a chat")
    verb.add_argument("--max-new-tokens", type=count, default=64)
    verb.add_argument("--temperature", type=temperature, default=0.0, help="0: the likeliest token")
    verb.add_argument("--top-k", type=count, help="sample from the so many likeliest tokens only")
    verb.add_argument("--top-p", type=share, help="... that together have this probability")
    verb.add_argument("--stop", action="append", default=[], help="text to end at; repeat for more")
    verb.add_argument("--seed", type=seed, default=0)
    verb.add_argument(
        "--policy",
        choices=["prompt", "running"],
        default="prompt",
        help="routing of scope sequence, which cannot decode as it trained: frozen at the end of "
        "the prompt, or on the mean so far",
    )
    verb.add_argument("--window", type=count, help="policy running: the mean of so many tokens")
    verb.set_defaults(run=_generate)

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


def _study(arguments: argparse.Namespace) -> Any:
    from evals.scoring.known_names import check_task_names
    from moc.config.load import load_study

    return load_study(arguments.study, arguments.overrides, check=check_task_names)


def _plan(arguments: argparse.Namespace) -> int:
    study = _study(arguments)
    from moc.data.facts import knowledge
    from moc.plan.study_plan import plan_study, violations
    from moc.plan.text import render_plan

    plan = plan_study(study)
    print(plan.to_json() if arguments.json else "\n".join([render_plan(plan), *knowledge(study)]))
    problems = violations(plan)
    for problem in problems:
        _fail(problem, 1)
    return 1 if problems else 0


def _run(arguments: argparse.Namespace) -> int:
    study = _study(arguments)
    from moc.data.facts import knowledge
    from moc.errors import nearest
    from moc.plan.study_plan import plan_study, violations
    from moc.plan.text import render_plan
    from moc.train.distributed import is_main_process
    from moc.train.strategies import num_devices

    for arm in arguments.arms:
        if arm not in study.arms:
            raise ConfigError(f"--arms: no arm {arm!r}; {nearest(arm, list(study.arms))}")
    study.trainer.devices = num_devices(study.trainer)
    plan = plan_study(study)
    if problems := violations(plan):
        return _fail(problems[0], 1)
    if is_main_process():
        print("\n".join([render_plan(plan), *knowledge(study), ""]), flush=True)
    from moc.report import result_tables
    from moc.study import run_study

    try:
        report = run_study(study, arms=arguments.arms, seeds=arguments.seeds)
    except StudyInterrupted as error:
        return _fail(f"{error}; the same command goes on from there", 128 + error.number)
    if is_main_process():
        print(f"\n{result_tables(study.dir)}\n\nreport:  {report}\nbrowse:  make ui   (or: moc ui)")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from moc.verbs.eval import evaluate_stored

    print(evaluate_stored(arguments.path, arguments.suite, arguments.route_on, arguments.overrides))
    return 0


def _leakage(arguments: argparse.Namespace) -> int:
    from moc.verbs.leakage import leakage_of_stored, render_leakage

    record = leakage_of_stored(arguments.path, data=arguments.data, num_windows=arguments.windows)
    print(json.dumps(record, indent=2) if arguments.json else render_leakage(record))
    return 0


def _generate(arguments: argparse.Namespace) -> int:
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


def _fail(message: str, code: int) -> int:
    print(f"moc: {public(message)}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """One line for what the user can mend; the traceback for what only we can."""
    if isinstance(error, ConfigError):
        return _fail(str(error), 2)
    if isinstance(error, EXPLAINED):
        return _fail(str(error), 1)
    if fault := machine_fault(error):
        return _fail(f"{fault.what}; what was saved is whole; {fault.remedy}, then try again", 1)
    raise error


if __name__ == "__main__":
    sys.exit(main())
