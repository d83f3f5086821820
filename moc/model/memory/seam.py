"""The seam: what a memory is to the rest of the project. Every memory is store, address and read.

- store: a ``Bank``, the same class for every kind
- address: which rows of the bank a position reads, with which weights
- read: what is made of these rows, and added to the residual stream

A kind derives from ``Kind``, and ``build_memory`` names it. All else follows: plan, baselines,
causality, checkpoints, sharding, lazy optimizer, use of rows, controls, decoding, report.

B batch, L length, D model dim, R rows of a bank, U distinct rows of a batch, G routing groups, N
rows read by a group, C rows among which a router chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from moc.model.config import ModelConfig, RouterConfig
from moc.model.decode.cache import DecodePolicy, RowState
from moc.model.decode.positions import Positions
from moc.model.memory.bank import BankRows, most_distinct
from moc.model.memory.random_address import random_rows


class Context(NamedTuple):
    """What a memory is given in one forward pass, beside the normalised residual stream."""

    bank: BankRows
    tokens_BL: Tensor
    stream_BLD: Tensor  # what a learned address may look at: see ``Kind.addresses_block_input``
    pool_BL: Tensor | None = None  # positions that ``sequence`` routing may pool; None: all
    state: RowState | None = None  # of ``Kind.new_state``: the positions go on from those before
    measure: bool = False  # fill ``Address.health``, at the cost of a few more products


class Address(NamedTuple):
    """One memory layer's choice for a batch. Groups are consecutive positions of a sequence."""

    index_BGN: Tensor  # rows read, those that are always read first
    weight_BGN: Tensor
    group_tokens: int  # positions per group; the last may have fewer
    logits_BGC: Tensor | None = None  # of a router, for its losses; None without one
    probs_BGC: Tensor | None = None  # those whose mean its balance loss takes
    row_U: Tensor | None = None  # what was fetched for the batch; None where nothing was
    health: dict[str, Tensor] = {}  # noqa: RUF012  scalars by name, when asked for


class Addresses(Protocol):
    """The address: a module from the normalised stream (B, L, D) to the rows to be read."""

    def __call__(self, x_BLD: Tensor, context: Context) -> Address: ...


class Reads(Protocol):
    """The read: a module from the stream and the rows to what is added, (B, L, D).

    It returns the address with what it found out: ``row_U``, and ``health`` if that was asked for.
    """

    def __call__(
        self, x_BLD: Tensor, address: Address, context: Context
    ) -> tuple[Tensor, Address]: ...


class Memory(nn.Module):
    """One block's memory, of any kind."""

    def __init__(self, address: nn.Module, read: nn.Module) -> None:
        super().__init__()
        self.read = read
        self.address = address

    def forward(self, x_BLD: Tensor, context: Context) -> tuple[Tensor, Address]:
        """What is added to the residual stream, (B, L, D), and how it was addressed."""
        return self.read(x_BLD, self.address(x_BLD, context), context)


class Products(NamedTuple):
    """FLOPs of the matrix products of one layer's forward pass, by what its backward pass makes
    of them."""

    linear: float = 0  # two more products each
    attention: float = 0  # five products for every two
    saved: float = 0  # to be taken off the sum: backward products that nothing asks for


class Kind:
    """One kind of memory with its settings: what it is made of and what it costs. Allocates
    nothing; ``moc.plan`` asks it about models of any size.

    The class has the answers that suit a kind whose positions choose by themselves and whose read
    keeps nothing between calls. Its constructor raises ValueError for settings that cannot be.
    """

    row_name = "row"  # what a user calls one
    num_always = 0  # the first so many rows are always read, never chosen
    num_picked = 0  # rows that a group chooses; 0: there is no choice
    router: RouterConfig | None = None  # of a learned router, which has losses
    scope = "token"  # what shares a choice: "sequence", "segment", "token"; "none" without one
    addresses_block_input = False  # True: the block's input; False: the stream after attention
    decays_bank = True  # whether the optimizer's weight decay applies to the bank
    bank_init_std = 0.02
    # by how their names end: parameters drawn with another deviation, or evenly from +-bound
    init_stds: dict[str, float] = {}  # noqa: RUF012
    uniform_bounds: dict[str, float] = {}  # noqa: RUF012

    def __init__(self, config: ModelConfig) -> None:
        assert config.memory is not None
        self.config, self.memory = config, config.memory

    # What it is made of

    @property
    def num_rows(self) -> int:
        """R, rows that can be chosen or are always read."""
        raise NotImplementedError

    @property
    def row_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def build_address(self) -> nn.Module:
        """``Addresses``, learned or given."""
        raise NotImplementedError

    def build_random_address(self) -> nn.Module:
        """``Addresses``: the control in its place."""
        return RandomAddress(self)

    def build_read(self) -> nn.Module:
        """``Reads``. Its last map is called ``out``, and drawn as ``output_init`` says."""
        raise NotImplementedError

    def new_state(
        self, positions: Positions, policy: DecodePolicy, window_tokens: int | None
    ) -> RowState | None:
        """What a layer keeps while it decodes; None: nothing."""
        return None

    # What it costs, without the layer's norm, residual and second MLP

    def paper_flops(self, context_length: int, batch: int) -> int:
        """FLOPs of one layer's forward pass as arXiv 2603.21096 (appendix A.2) counts."""
        raise NotImplementedError

    def products(self, context_length: int, batch: int, *, gpu: bool) -> Products:
        """Of one layer, as ``torch.utils.flop_counter`` counts."""
        raise NotImplementedError

    def activation_bytes(self, context_length: int, batch: int, width: int) -> int:
        """Roughly what one layer keeps for its backward pass, in floats of ``width`` bytes."""
        raise NotImplementedError

    # What follows

    @property
    def causal(self) -> bool:
        """Whether logits depend on no later token."""
        return self.scope != "sequence"

    @property
    def group_words(self) -> str:
        """What shares a choice, in words."""
        return self.scope

    @property
    def read_words(self) -> str:
        """Which rows a group reads, in words."""
        return f"{self.num_read:,}"

    @property
    def most_mixed(self) -> int:
        """What a position can mix, in the unit of ``health["effective_read"]``."""
        return self.num_read

    def group_tokens(self, length: int) -> int:
        """Positions that share one choice, in sequences of ``length``."""
        return 1 if self.scope == "token" else length

    def num_groups(self, length: int) -> int:
        """G: choices that a sequence makes."""
        return -(-length // self.group_tokens(length))

    @property
    def num_read(self) -> int:
        """N: rows that a group reads."""
        return self.num_always + self.num_picked

    def most_rows_read(self, batch: int, length: int) -> int:
        """U at most."""
        shape_BGN = (batch, self.num_groups(length), self.num_read)
        return most_distinct(self.num_rows, shape_BGN, self.num_always)

    def copied_positions(self, length: int) -> int:
        """Positions whose shared rows are copied together; bounds how much is scored at once."""
        return 1

    def random_rows(self, key_BG: Tensor) -> Tensor:
        """K rows for every key: see ``random_rows``."""
        return random_rows(
            key_BG,
            num_rows=self.num_rows,
            num_always=self.num_always,
            num_picked=self.num_picked,
        )

    def layer_parameters(self) -> int:
        """Of one layer: address and read."""
        return self._count(self.build_layer)

    def fixed_parameters(self) -> int:
        """Those of one layer that never train: of an address that is to stay random."""
        return self._count(self.build_random_address) if self.memory.address == "random" else 0

    def _count(self, build: Callable[[], nn.Module]) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build().parameters())

    def build_layer(self) -> Memory:
        random = self.memory.address == "random"
        address = self.build_random_address() if random else self.build_address()
        return Memory(address, self.build_read())


class RandomAddress(nn.Module):
    """For positions that address by themselves: rows from a hash of the token, equal weights."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        assert kind.scope == "token", "groups of positions are numbered by their kind"
        self.kind = kind

    def forward(self, x_BLD: Tensor, context: Context) -> Address:
        index_BLK = self.kind.random_rows(context.tokens_BL)
        always_N = torch.arange(self.kind.num_always, device=x_BLD.device)
        always_BLN = always_N.expand(*index_BLK.shape[:2], -1)
        index_BLN = torch.cat((always_BLN, index_BLK), dim=-1)
        weight_BLN = torch.full_like(index_BLN, 1 / index_BLN.shape[-1], dtype=torch.float32)
        return Address(index_BLN, weight_BLN, 1)
