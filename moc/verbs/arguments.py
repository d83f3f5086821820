"""The command line of the verbs that ask a stored model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moc.verbs.options import count, seed, share, temperature


def add_stored(
    verbs: argparse._SubParsersAction[Any],
    run: Mapping[str, Callable[[argparse.Namespace], int]],
) -> None:
    """``eval``, ``leakage`` and ``generate``; ``run`` has what each does."""
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
    verb.set_defaults(run=run["eval"])

    verb = verbs.add_parser("leakage", help="how much a model gains by routing on later tokens")
    verb.add_argument("path", type=Path, help="a folder below .../boundaries, or a seed's folder")
    verb.add_argument(
        "--data", nargs="+", default=[], help="the study's sources by name, or files of text"
    )
    verb.add_argument("--windows", type=count, help="per source; default: as many as in the study")
    verb.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    verb.set_defaults(run=run["leakage"])

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
    verb.set_defaults(run=run["generate"])
