"""How fast this machine trains and decodes: ``python -m moc.bench VERB``. Needs torch alone.

Times are medians over repetitions in which all contenders take turns, after a warm-up; compare them
as ratios within one run. Tokens are random, models fresh.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from moc.bench.arguments import bench_parser
from moc.bench.contenders import (
    MIXING,
    SEGMENT_TOKENS,
    Decoding,
    Spread,
    Training,
    Workload,
    interleaved,
    iso_flop,
    peak_bytes,
    seconds_of,
    shown_as,
    with_memory,
)
from moc.bench.heap import keep_freed_memory
from moc.bench.peak import measure_matmul_peak
from moc.bench.read import read_verb
from moc.model import ModelConfig, preset
from moc.plan.flops import hardware_train_flops_per_token
from moc.text import human, table


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


def _step(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Training steps of moc in each scope, its iso-FLOP dense baseline and its backbone."""
    work, base = _workload(arguments), _model(arguments)
    configs = {f"moc {scope}": _routed(base, scope) for scope in arguments.scopes}
    configs["iso_flop"] = iso_flop(next(iter(configs.values())), work)
    configs["backbone"] = replace(base, memory=None)
    optimizer = arguments.optimizer
    peak = measure_matmul_peak(torch.device(work.device), _dtype(work))
    contenders = {n: Training(config, work, optimizer) for n, config in configs.items()}
    times = interleaved(contenders, arguments.repetitions, work.device)
    contenders.clear()
    rows: list[dict[str, Any]] = []
    for name, config in configs.items():
        arm, _, scope = name.partition(" ")
        per_token = hardware_train_flops_per_token(
            replace(config, activation_checkpointing=False), work.length, work.batch
        )
        rows.append(
            {
                "arm": arm,
                "scope": scope or "none",
                "mixing": config.memory.mixing if config.memory else None,
                **seconds_of("step_sec", times[name]),
                "tokens_per_sec": work.tokens / times[name].median,
                "mfu": per_token * work.tokens / times[name].median / peak,
                "peak_bytes": peak_bytes(config, work, optimizer),
            }
        )
    first = times[next(iter(configs))].median
    lines = table(
        ["arm", "scope, mixing", "step, ms", "spread", "tokens/s", "MFU", "peak", "ratio"],
        {
            f"{row['arm']} {row['scope']}": [
                row["mixing"] or "",
                *shown_as(times[name]),
                f"{row['tokens_per_sec']:,.0f}",
                f"{row['mfu']:.1%}",
                human(row["peak_bytes"], "B"),
                f"{times[name].median / first:.2f}",
            ]
            for name, row in zip(configs, rows, strict=True)
        },
    )
    lines += [
        "",
        f"matmul peak {human(peak, 'FLOP/s')}; MFU counts the products executed, of chapters at "
        "most; ratio: to the first row",
        f"{_chapters(base)}, {optimizer} bank optimizer, {_routing_words(arguments)}",
    ]
    return lines, {"rows": rows, "matmul_peak_flops": peak}


def _growth(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Training steps over the number of chapters, at fixed K, with both optimizers of the bank."""
    work, scope = _workload(arguments), arguments.scope
    base = _routed(_model(arguments), scope)
    configs = {
        (chapters, optimizer): with_memory(base, num_chapters=chapters)
        for chapters in arguments.chapters
        for optimizer in arguments.optimizers
    }
    dense = iso_flop(with_memory(base, num_chapters=max(arguments.chapters)), work)
    contenders: dict[str, Callable[[], None]] = {
        str(key): Training(config, work, key[1]) for key, config in configs.items()
    }
    contenders["iso_flop"] = Training(dense, work, "dense")
    times = interleaved(contenders, arguments.repetitions, work.device)
    contenders.clear()
    iso = times["iso_flop"].median
    rows = [
        {
            "chapters": chapters,
            "optimizer": optimizer,
            "scope": scope,
            **seconds_of("step_sec", times[str((chapters, optimizer))]),
            "peak_bytes": peak_bytes(config, work, optimizer),
        }
        for (chapters, optimizer), config in configs.items()
    ]
    first = {o: times[str((arguments.chapters[0], o))].median for o in arguments.optimizers}
    shown = {
        f"{row['chapters']:,} {row['optimizer']}": [
            *shown_as(times[str(key)]),
            f"{times[str(key)].median / iso:.2f}",
            f"{times[str(key)].median / first[key[1]]:.2f}",
            human(row["peak_bytes"], "B"),
            human(4 * key[0] * _chapter_values(base), "B"),
        ]
        for key, row in zip(configs, rows, strict=True)
    }
    shown["iso-FLOP dense"] = [*shown_as(times["iso_flop"]), "1.00", "", "", ""]
    header = ["chapters", "step, ms", "spread", "/ iso-FLOP", "/ first", "peak", "bank"]
    lines = [*table(header, shown), "", f"scope {scope}, {_routing_words(arguments)}"]
    return lines, {"rows": rows, "iso_flop_step_sec": iso}


def _decode(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Decoding with a cache against the backbone's."""
    base = with_memory(_model(arguments), num_chapters=arguments.chapters)
    rows, shown = [], {}
    for batch in arguments.batches:
        configs = {f"moc {scope}": _routed(base, scope) for scope in arguments.scopes}
        configs["backbone"] = replace(base, memory=None)
        contenders = {
            name: Decoding(config, batch, arguments.prompt, arguments.new, arguments.device)
            for name, config in configs.items()
        }
        times = interleaved(contenders, arguments.repetitions, arguments.device)
        backbone = times["backbone"].median
        for name, spread in times.items():
            arm, _, scope = name.partition(" ")
            per_token = Spread(*(seconds / arguments.new for seconds in spread))
            rows.append(
                {
                    "arm": arm,
                    "scope": scope or "none",
                    "batch": batch,
                    **seconds_of("token_sec", per_token),
                    "tokens_per_sec": batch / per_token.median,
                }
            )
            shown[f"{name}, batch {batch}"] = [
                *shown_as(per_token, digits=2),
                f"{batch / per_token.median:,.0f}",
                f"{spread.median / backbone:.2f}",
            ]
    header = ["arm", "ms/token", "spread", "tokens/s", "/ backbone"]
    what = f"prompts of {arguments.prompt}, {arguments.new} new tokens"
    lines = [*table(header, shown), "", f"{arguments.chapters:,} chapters, {what}"]
    return lines, {"rows": rows}


def _workload(arguments: argparse.Namespace) -> Workload:
    return Workload(
        batch=arguments.batch or (8 if arguments.preset == "bench" else 32),
        length=arguments.length or (256 if arguments.preset == "bench" else 1024),
        device=arguments.device,
        bf16=arguments.bf16,
        compile=arguments.compile,
        uniform=arguments.routing == "uniform",
    )


def _model(arguments: argparse.Namespace) -> ModelConfig:
    config = preset(arguments.preset)
    config = replace(config, activation_checkpointing=getattr(arguments, "checkpointing", False))
    memory = config.memory
    assert memory is not None
    if arguments.verb == "step" and arguments.chapters:
        return with_memory(config, num_chapters=arguments.chapters)
    return with_memory(config)


def _routed(config: ModelConfig, scope: str) -> ModelConfig:
    mixing = MIXING[scope]
    return with_memory(config, scope=scope, segment_tokens=SEGMENT_TOKENS, mixing=mixing)


def _routing_words(arguments: argparse.Namespace) -> str:
    if arguments.routing == "uniform":
        return "chapters in turn: as many distinct ones as there can be"
    return "chapters chosen by fresh routers for random tokens"


def _chapters(config: ModelConfig) -> str:
    assert config.memory is not None
    return f"{config.memory.num_chapters:,} chapters"


def _chapter_values(config: ModelConfig) -> int:
    assert config.memory is not None
    return config.memory.chapter_tokens * (config.memory.dim or config.dim)


def _dtype(work: Workload) -> torch.dtype:
    return torch.bfloat16 if work.bf16 else torch.float32


def _machine(arguments: argparse.Namespace) -> str:
    if arguments.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{torch.get_num_threads()} CPU threads"
    precision = "bf16" if arguments.bf16 else "float32"
    return f"{arguments.verb}: {name}, {precision}, torch {torch.__version__}"


VERBS = {"step": _step, "growth": _growth, "read": read_verb, "decode": _decode}

if __name__ == "__main__":
    sys.exit(main())
