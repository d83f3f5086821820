"""Models small enough to try every combination of them, and whose every part matters."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from moc.model import (
    ChaptersConfig,
    MemoryConfig,
    ModelConfig,
    RouterConfig,
    Transformer,
    build_model,
)
from moc.train.addresses import routers

torch.set_num_threads(1)
W = 4  # positions per segment
ROUTERS = {
    "sequence": RouterConfig(scope="sequence"),
    "segment": RouterConfig(scope="segment", segment_tokens=W),
    # reaches back past the segment before; at the first borders there is less than that
    "window": RouterConfig(scope="segment", segment_tokens=W, window_tokens=6),
    "token": RouterConfig(scope="token"),
}
CAUSAL = ("segment", "window", "token")
MIXINGS = ("joint", "per_chapter", "log_bias")
ROUTER_INPUTS = ("block_input", "post_attention")


def chapters(memory: MemoryConfig | None = None, **changes: object) -> MemoryConfig:
    """``memory`` (None: the default) of kind ``chapters`` with settings changed, of memories in
    general or of chapters."""
    memory = memory or MemoryConfig()
    of_kind = {field.name for field in fields(ChaptersConfig)}
    own = {name: value for name, value in changes.items() if name in of_kind}
    rest = {name: value for name, value in changes.items() if name not in of_kind}
    return replace(memory, chapters=replace(memory.chapters, **own), **rest)  # type: ignore[arg-type]


DENSE = ModelConfig(
    vocab_size=37, num_layers=3, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, memory=None
)
MEMORY = chapters(num_chapters=9, num_routed=3, chapter_tokens=4, layers="0,2")
MOC = replace(DENSE, memory=chapters(MEMORY, router=ROUTERS["segment"]))


def with_router(scope: str, *, router_input: str = "block_input", **memory: object) -> ModelConfig:
    """``MOC`` with one of ``ROUTERS`` and changes of its memory."""
    router = replace(ROUTERS[scope], input=router_input)  # type: ignore[arg-type]
    return replace(DENSE, memory=chapters(MEMORY, router=router, **memory))


def lively(config: ModelConfig, seed: int = 0) -> Transformer:
    """No zero maps, weights far from their small init."""
    memory = config.memory and replace(config.memory, output_init="normal", bank_init_std=0.5)
    return build_model(replace(config, init_std=0.3, residual_init_std=0.3, memory=memory), seed)


def take_turns(model: Transformer) -> Transformer:
    """``model``, its chapters in turn, whatever its routers say: the same in every test."""
    for router in routers(model).values():
        router.takes_turns = True
    return model


def tokens_of(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(37, (batch, length), generator=torch.Generator().manual_seed(seed))
