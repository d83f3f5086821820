"""``python -m moc.bench step``: training steps with memories, and of their dense baselines."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from moc.bench.arms import SCOPES_OF, arms, bank_words, base_model, choice_words, sized, workload
from moc.bench.contenders import (
    Training,
    interleaved,
    iso_flop,
    peak_bytes,
    seconds_of,
    shown_as,
)
from moc.bench.peak import measure_matmul_peak
from moc.plan.flops import hardware_train_flops_per_token
from moc.text import human, table


def step_verb(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Training steps of each kind in each scope, of the first one's iso-FLOP dense baseline, and of
    the backbone."""
    work = workload(arguments)
    sizes = {"chapters": arguments.chapters, "product_keys": arguments.keys}
    memories = {
        f"{kind} {scope}": sized(config, sizes[kind])
        for (kind, scope), config in arms(arguments, SCOPES_OF).items()
    }
    configs = {
        **memories,
        "iso_flop": iso_flop(next(iter(memories.values())), work),
        "backbone": replace(base_model(arguments), memory=None),
    }
    optimizer = arguments.optimizer
    dtype = torch.bfloat16 if work.bf16 else torch.float32
    peak = measure_matmul_peak(torch.device(work.device), dtype)
    contenders = {n: Training(config, work, optimizer) for n, config in configs.items()}
    times = interleaved(contenders, arguments.repetitions, work.device)
    contenders.clear()
    peaks = peak_bytes([(config, optimizer) for config in configs.values()], work)
    rows: list[dict[str, Any]] = []
    for (name, config), peak_memory in zip(configs.items(), peaks, strict=True):
        arm, _, scope = name.partition(" ")
        per_token = hardware_train_flops_per_token(
            replace(config, activation_checkpointing=False), work.length, work.batch
        )
        rows.append(
            {
                "arm": arm,
                "scope": scope or "none",
                "mixing": config.memory.chapters.mixing
                if config.memory and arm == "chapters"
                else None,
                **seconds_of("step_sec", times[name]),
                "tokens_per_sec": work.tokens / times[name].median,
                "mfu": per_token * work.tokens / times[name].median / peak,
                "peak_bytes": peak_memory,
            }
        )
    first = times[next(iter(configs))].median
    lines = table(
        ["arm, scope", "mixing", "step, ms", "spread", "tokens/s", "MFU", "peak", "ratio"],
        {
            name: [
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
    banks = dict.fromkeys(bank_words(config) for config in memories.values())
    lines += [
        "",
        f"matmul peak {human(peak, 'FLOP/s')}; MFU counts the products executed, of chapters at "
        "most",
        "ratio: to the first row, whose FLOPs are iso_flop's",
        f"{', '.join(banks)}; {optimizer} bank optimizer",
        *choice_words(arguments),
    ]
    return lines, {"rows": rows, "matmul_peak_flops": peak}
