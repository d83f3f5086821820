"""Kind ``chapters`` (arXiv 2603.21096).

B batch, L length, D model dim, C chapters, T tokens per chapter, M memory width.
"""

from __future__ import annotations

from typing import get_args

from torch import nn

from moc.model.config import Mixing, ModelConfig, Normalise, RouterConfig, RouterInput, Scope
from moc.model.decode.cache import DecodePolicy
from moc.model.decode.positions import Positions
from moc.model.memory.chapters import costs
from moc.model.memory.chapters.read import ChapterRead
from moc.model.memory.chapters.router import ChapterAddress, RandomRouter, Router, group_tokens
from moc.model.memory.chapters.sizes import Sizes
from moc.model.memory.chapters.state import ChaptersState
from moc.model.memory.checks import check_choice, check_heads
from moc.model.memory.seam import Kind, Products


class Chapters(Kind):
    row_name = "chapter"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.chapters = chapters = self.memory.chapters
        self.sizes = Sizes.of(config, chapters)
        self._check()
        self.num_picked = chapters.num_routed or 0
        self.num_always = chapters.num_shared if self.num_picked else chapters.num_chapters
        routed = bool(self.num_picked)
        self.scope = chapters.router.scope if routed else "none"
        learned = routed and self.memory.address == "learned"
        self.router: RouterConfig | None = chapters.router if learned else None
        # as of product keys: a gate of small weights would keep the bank from being read at first
        self.init_stds = {".memory.read.gate.weight": config.dim**-0.5}
        self.addresses_block_input = chapters.router.input == "block_input"

    @property
    def num_rows(self) -> int:
        return self.chapters.num_chapters

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.chapters.chapter_tokens, self.sizes.memory_dim

    def build_address(self) -> nn.Module:
        return ChapterAddress(Router(self.chapters, self.config.dim) if self.num_picked else None)

    def build_random_address(self) -> nn.Module:
        return ChapterAddress(RandomRouter(self, self.chapters) if self.num_picked else None)

    def build_read(self) -> nn.Module:
        return ChapterRead(self.sizes)

    def new_state(
        self, positions: Positions, policy: DecodePolicy, window_tokens: int | None
    ) -> ChaptersState:
        return ChaptersState(self.chapters, positions, policy, window_tokens)

    def paper_flops(self, context_length: int, batch: int) -> int:
        return costs.paper_flops(self, self.sizes, context_length, batch)

    def products(self, context_length: int, batch: int, *, gpu: bool) -> Products:
        return costs.products(self, self.sizes, context_length, batch, gpu=gpu)

    def activation_bytes(self, context_length: int, batch: int, width: int) -> int:
        return costs.activation_bytes(self, self.sizes, context_length, batch, width)

    @property
    def causal(self) -> bool:
        return self.router is None or self.scope != "sequence"

    @property
    def group_words(self) -> str:
        if self.scope != "segment":
            return self.scope
        router = self.chapters.router
        window = f", window {router.window_tokens}" if router.window_tokens else ""
        return f"segment of {router.segment_tokens}{window}"

    @property
    def read_words(self) -> str:
        routed = f"{self.num_picked} routed" if self.num_picked else "all"
        return f"{routed} + {self.chapters.num_shared} shared"

    @property
    def most_mixed(self) -> int:
        return self.num_read * self.chapters.chapter_tokens

    def group_tokens(self, length: int) -> int:
        return group_tokens(self.chapters.router, length) if self.num_picked else length

    def copied_positions(self, length: int) -> int:
        return self.group_tokens(length)

    def _check(self) -> None:
        chapters, config = self.chapters, self.config
        check_choice("memory.chapters.mixing", chapters.mixing, get_args(Mixing))
        check_choice("memory.chapters.normalise", chapters.normalise, get_args(Normalise))
        _check_router(chapters.router)
        where = "model.memory.chapters"
        routable = chapters.num_chapters - chapters.num_shared
        if routable < 0:
            raise ValueError(
                f"{where}.num_shared is {chapters.num_shared}, but there are "
                f"{chapters.num_chapters} chapters"
            )
        if chapters.num_routed is not None and chapters.num_routed > routable:
            raise ValueError(
                f"{where}.num_routed must be 1 to {routable} (the chapters that are not "
                f"shared), or null for all; it is {chapters.num_routed}"
            )
        check_heads(where, config.dim, self.sizes.num_heads, self.sizes.num_kv_heads)


def _check_router(router: RouterConfig) -> None:
    for name, choices in (
        ("scope", get_args(Scope)),
        ("input", get_args(RouterInput)),
        ("balance_over", ("routed", "all")),
    ):
        check_choice(f"memory.chapters.router.{name}", getattr(router, name), choices)
    if router.window_tokens is not None and router.scope != "segment":
        raise ValueError(
            "model.memory.chapters.router.window_tokens limits what scope segment looks back on; "
            f"set it to null for scope {router.scope}"
        )
