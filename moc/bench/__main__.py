"""How fast this machine trains and decodes: ``python -m moc.bench VERB``. Needs torch alone.

Times are medians over repetitions in which all contenders take turns, after a warm-up; compare them
as ratios within one run. Tokens are random, models fresh.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from moc.bench.arguments import bench_parser
from moc.bench.decode import decode_verb
from moc.bench.growth import growth_verb
from moc.bench.heap import keep_freed_memory
from moc.bench.read import read_verb
from moc.bench.step import step_verb


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and print its table. 0: done; 2: it cannot be run; 130: interrupted."""
    arguments = bench_parser(VERBS).parse_args(argv)
    keep_freed_memory()
    device = arguments.device
    if device == "auto":
        device = arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        print("moc.bench: no GPU here; leave --device out", file=sys.stderr)
        return 2
    try:
        lines, result = arguments.run(arguments)
    except KeyboardInterrupt:
        print("moc.bench: stopped, nothing was written", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"moc.bench: {error}", file=sys.stderr)
        return 2
    print("\n".join([_machine(arguments), "", *lines]))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _machine(arguments: argparse.Namespace) -> str:
    if arguments.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{torch.get_num_threads()} CPU threads"
    precision = "bf16" if arguments.bf16 else "float32"
    return f"{arguments.verb}: {name}, {precision}, torch {torch.__version__}"


VERBS = {"step": step_verb, "growth": growth_verb, "read": read_verb, "decode": decode_verb}

if __name__ == "__main__":
    sys.exit(main())
