"""Which models a verb compares: kinds of memory, their scopes and the sizes of their banks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moc.bench.arguments import SCOPES
from moc.bench.contenders import MIXING, SEGMENT_TOKENS, Workload, with_memory
from moc.model import ModelConfig, preset
from moc.model.memory.build import build_memory

# how a kind can choose; the option that sizes its bank, and the setting
SCOPES_OF = {"chapters": SCOPES, "product_keys": ("token",)}
SIZE_OF = {"chapters": ("chapters", "num_chapters"), "product_keys": ("keys", "num_keys")}


def base_model(arguments: argparse.Namespace) -> ModelConfig:
    config = preset(arguments.preset)
    return replace(config, activation_checkpointing=getattr(arguments, "checkpointing", False))


def arms(
    arguments: argparse.Namespace, default_scopes: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], ModelConfig]:
    """The models with a memory, by kind and scope, their banks of the preset's size.

    Raises:
        ValueError: where ``arguments`` say something about a kind that they do not ask for.
    """
    for kind, (option, _) in SIZE_OF.items():
        if getattr(arguments, option) is not None and kind not in arguments.kind:
            raise ValueError(f"--{option} is of {kind}, but --kind is {','.join(arguments.kind)}")
    found = {}
    for kind in arguments.kind:
        scopes = arguments.scopes or default_scopes[kind]
        possible = [scope for scope in scopes if scope in SCOPES_OF[kind]]
        if not possible:
            raise ValueError(
                f"{kind} choose by {', '.join(SCOPES_OF[kind])}, not by {', '.join(scopes)}"
            )
        found.update({(kind, s): _of_kind(base_model(arguments), kind, s) for s in possible})
    return found


def sized(config: ModelConfig, size: int | None) -> ModelConfig:
    """With a bank of so many chapters, or of so many half-keys' values; None: as it is."""
    assert config.memory is not None
    setting = SIZE_OF[config.memory.kind][1]
    return config if size is None else with_memory(config, **{setting: size})


def _of_kind(base: ModelConfig, kind: str, scope: str) -> ModelConfig:
    config = with_memory(base, kind=kind)
    if kind != "chapters":
        return config
    mixing = MIXING[scope]
    return with_memory(config, scope=scope, segment_tokens=SEGMENT_TOKENS, mixing=mixing)


def workload(arguments: argparse.Namespace) -> Workload:
    return Workload(
        batch=arguments.batch or (32 if arguments.preset == "paper" else 8),
        length=arguments.length or (1024 if arguments.preset == "paper" else 256),
        device=arguments.device,
        bf16=arguments.bf16,
        compile=arguments.compile,
        uniform=arguments.routing == "uniform",
    )


def bank_words(config: ModelConfig) -> str:
    kind = build_memory(config)
    return f"{kind.num_rows:,} {kind.row_name}s"


def choice_words(arguments: argparse.Namespace) -> list[str]:
    """Who chooses the rows, for every kind measured."""
    by_routers = "chapters chosen by fresh routers for random tokens"
    if arguments.routing == "uniform":
        by_routers = "chapters in turn: as many distinct ones as there can be"
    by_keys = "values chosen by fresh keys for random tokens"
    words = {"chapters": by_routers, "product_keys": by_keys}
    return [words[kind] for kind in arguments.kind]
