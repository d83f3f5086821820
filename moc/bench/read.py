"""``python -m moc.bench read``: the routed-attention operation alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moc.bench.contenders import MIXING, SEGMENT_TOKENS, interleaved, seconds_of, shown_as
from moc.bench.peak import measure_matmul_peak
from moc.ops import routed_attention
from moc.text import human, table


def read_verb(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The routed-attention operation alone, against the time that its arithmetic takes at least."""
    device, dtype = arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32
    batch, length, dim, heads = arguments.batch, arguments.length, arguments.dim, arguments.heads
    chapters, chapter_tokens, num_read = arguments.chapters, arguments.tokens, arguments.routed
    width = {"sequence": length, "segment": SEGMENT_TOKENS, "token": 1}
    rows, shown = [], {}
    peak = measure_matmul_peak(torch.device(device), dtype)
    generator = torch.Generator().manual_seed(0)
    for scope in arguments.scopes:
        groups = -(-length // width[scope])
        q_BLHE, k_UTJE, v_UTJE = (
            torch.randn(*shape, heads, dim // heads, generator=generator)
            .to(device, dtype)
            .requires_grad_()
            for shape in ((batch, length), *[(chapters, chapter_tokens)] * 2)
        )
        row_BGN = torch.rand(batch, groups, chapters, generator=generator).topk(num_read).indices
        weight_BGN = torch.rand(batch, groups, num_read, generator=generator).softmax(-1)
        row_BGN = row_BGN.to(device)
        weight_BGN = weight_BGN.to(device, dtype).requires_grad_()

        run = partial(
            routed_attention,
            q_BLHE,
            k_UTJE,
            v_UTJE,
            row_BGN,
            weight_BGN,
            mixing=MIXING[scope],
            group_tokens=width[scope],
        )
        times = interleaved(
            {"forward": partial(_forward, run), "both": partial(_forward_and_backward, run)},
            arguments.repetitions,
            device,
        )
        bound = 4 * batch * length * num_read * chapter_tokens * dim / peak
        rows.append(
            {
                "scope": scope,
                "mixing": MIXING[scope],
                **seconds_of("forward_sec", times["forward"]),
                **seconds_of("forward_backward_sec", times["both"]),
                "forward_bound_sec": bound,
                "forward_backward_bound_sec": 3.5 * bound,
            }
        )
        shown[f"{scope} {MIXING[scope]}"] = [
            *shown_as(times["forward"]),
            f"{bound * 1e3:.2f}",
            *shown_as(times["both"]),
            f"{3.5 * bound * 1e3:.2f}",
        ]
    header = ["scope", "forward, ms", "spread", "bound", "and backward", "spread", "bound"]
    shape = (
        f"B {batch}, L {length}, {chapters} chapters of {chapter_tokens} tokens, {num_read} read"
    )
    return (
        [
            *table(header, shown),
            "",
            f"{shape}, D {dim}, {heads} heads; bound: arithmetic at {human(peak, 'FLOP/s')}",
        ],
        {"rows": rows, "matmul_peak_flops": peak},
    )


def _forward(run: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        run()


def _forward_and_backward(run: Callable[[], torch.Tensor]) -> None:
    run().sum().backward()
