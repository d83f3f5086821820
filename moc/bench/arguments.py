"""The command line of ``python -m moc.bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from moc.model.config import Preset, Scope

Verb = Callable[[argparse.Namespace], tuple[list[str], dict[str, Any]]]
SCOPES = get_args(Scope)
KINDS = ("chapters", "product_keys")


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"moc.bench: {message}; see '{self.prog} --help'\n")


def bench_parser(verbs_run: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The parser of ``python -m moc.bench``; ``run`` of its result is the verb's function."""
    parser = _Parser(
        prog="python -m moc.bench",
        description="How fast this machine trains and decodes; needs torch alone.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("step", help="training steps with memories, and of dense baselines")
    _takes_kinds(verb)
    _takes_training(verb, routing="router")
    verb.add_argument("--chapters", type=int, help="of the bank (default: the preset's)")
    verb.add_argument("--keys", type=int, help="half-keys: values' root (default: the preset's)")
    verb.add_argument("--scopes", type=_some_of(SCOPES), metavar="A,B", help="(default: all)")
    verb.add_argument("--optimizer", choices=("lazy", "dense"), default="lazy")
    verb.set_defaults(run=verbs_run["step"])

    verb = verbs.add_parser("growth", help="training steps over the size of the bank")
    _takes_kinds(verb)
    _takes_training(verb, routing="uniform")
    verb.add_argument(
        "--chapters", type=_numbers, metavar="A,B", help="(default: 129,1025,4097,16385)"
    )
    verb.add_argument(
        "--keys", type=_numbers, metavar="A,B", help="half-keys (default: 64,128,256,512)"
    )
    verb.add_argument(
        "--scope", dest="scopes", type=_some_of(SCOPES), metavar="A",
        help="(default: sequence; product_keys: token)",
    )  # fmt: skip
    both = ("lazy", "dense")
    verb.add_argument("--optimizers", type=_some_of(both), default=list(both), metavar="A,B")
    verb.set_defaults(run=verbs_run["growth"])

    verb = verbs.add_parser("read", help="the routed-attention operation alone")
    _takes_any(verb)
    verb.add_argument("--scopes", type=_some_of(SCOPES), default=["segment", "token"])
    for name, default in (
        ("batch", 8), ("length", 256), ("chapters", 1025), ("tokens", 64), ("routed", 17),
        ("dim", 256), ("heads", 4),
    ):  # fmt: skip
        verb.add_argument(f"--{name}", type=int, default=default)
    verb.set_defaults(run=verbs_run["read"])

    verb = verbs.add_parser("decode", help="decoding with a cache")
    _takes_kinds(verb)
    _takes_any(verb)
    verb.add_argument("--preset", choices=get_args(Preset), default="bench")
    verb.add_argument(
        "--scopes", type=_some_of(SCOPES), metavar="A,B",
        help="(default: segment; product_keys: token)",
    )  # fmt: skip
    verb.add_argument("--chapters", type=int, help="(default: 4097)")
    verb.add_argument("--keys", type=int, help="half-keys (default: 512)")
    verb.add_argument("--batches", type=_numbers, default=[1, 32], metavar="A,B")
    verb.add_argument("--prompt", type=int, default=32)
    verb.add_argument("--new", type=int, default=64, help="tokens decoded")
    verb.set_defaults(run=verbs_run["decode"])
    return parser


def _takes_kinds(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--kind", type=_some_of(KINDS), default=["chapters"], metavar="A,B",
        help=f"of {', '.join(KINDS)} (default: chapters)",
    )  # fmt: skip


def _takes_training(verb: argparse.ArgumentParser, *, routing: str) -> None:
    _takes_any(verb)
    verb.add_argument("--preset", choices=get_args(Preset), default="bench")
    verb.add_argument("--batch", type=int, help="sequences (default: 8; paper: 32)")
    verb.add_argument("--length", type=int, help="tokens of a sequence (default: 256; paper: 1024)")
    verb.add_argument(
        "--routing",
        choices=("router", "uniform"),
        default=routing,
        help="chapters, by fresh routers or in turn: the most distinct ones (default: %(default)s)",
    )
    verb.add_argument("--compile", action="store_true", help="torch.compile the model")
    verb.add_argument("--checkpointing", action="store_true", help="recompute blocks")


def _takes_any(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verb.add_argument("--bf16", action="store_true", help="bfloat16 products")
    verb.add_argument("--repetitions", type=_positive, default=7, help="that count (default: 7)")
    verb.add_argument("--json", type=_file, metavar="FILE", help="write the figures there too")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _file(text: str) -> Path:
    """A file that can be written: better known before minutes of measuring than after."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written: no such folder, or a folder")
    return path


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no comma-separated integers") from None


def _some_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        words = text.split(",")
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(choices)}")
        return words

    return parse
