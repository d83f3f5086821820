"""``python -m moc.bench decode``: decoding with a cache."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from moc.bench.arms import arms, bank_words, base_model, sized
from moc.bench.contenders import Decoding, Spread, interleaved, seconds_of, shown_as
from moc.text import table

_SCOPE = {"chapters": ("segment",), "product_keys": ("token",)}


def decode_verb(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Decoding with a cache against the backbone's."""
    sizes = {"chapters": arguments.chapters or 4097, "product_keys": arguments.keys or 512}
    configs = {
        f"{kind} {scope}": sized(config, sizes[kind])
        for (kind, scope), config in arms(arguments, _SCOPE).items()
    }
    banks = dict.fromkeys(bank_words(config) for config in configs.values())
    configs["backbone"] = replace(base_model(arguments), memory=None)
    rows, shown = [], {}
    for batch in arguments.batches:
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
    header = ["arm, scope", "ms/token", "spread", "tokens/s", "/ backbone"]
    what = f"prompts of {arguments.prompt}, {arguments.new} new tokens"
    lines = [*table(header, shown), "", f"{', '.join(banks)}; {what}"]
    return lines, {"rows": rows}
