"""Kind ``product_keys``: Memory+ (arXiv 2412.09764) over product keys (arXiv 1907.05242).

Every position queries by itself, with H heads. A head's query has two halves, each scored against n
half-keys; the k best sums of one score from each half are softmaxed, and weigh k of the n^2 values.

B batch, L length, D model dim, H heads, Q width of a head's query, n half-keys, k values per head,
N = H * k values read, U distinct values of the batch.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.config import ModelConfig, ProductKeysConfig, QueryNorm
from moc.model.memory import arithmetic
from moc.model.memory.bank import distinct_rows
from moc.model.memory.checks import check_choice
from moc.model.memory.query_norm import build_query_norm
from moc.model.memory.seam import Address, Context, Kind, Products
from moc.ops import needs_distinct_rows, product_topk, weighted_rows


class KeyAddress(nn.Module):
    """The values whose keys fit a position's queries best; float32 under autocast, as a router."""

    def __init__(self, settings: ProductKeysConfig, dim: int, key_dim: int) -> None:
        super().__init__()
        self.num_heads, self.num_read = settings.num_heads, settings.num_read
        self.query = nn.Linear(dim, settings.num_heads * key_dim, bias=False)
        self.query_norm = build_query_norm(settings.query_norm, key_dim)
        self.half_keys = nn.Parameter(
            torch.empty(settings.num_heads, 2, settings.num_keys, key_dim // 2)
        )

    def forward(self, x_BLD: Tensor, context: Context) -> Address:
        with torch.autocast(x_BLD.device.type, enabled=False):
            q_BLHQ = self.query(x_BLD.to(self.query.weight.dtype)).unflatten(
                -1, (self.num_heads, -1)
            )
            q_XH2Q = self.query_norm(q_BLHQ).flatten(0, 1).unflatten(-1, (2, -1))
            # one product per head and half: (H, 2, X, Q / 2) with (H, 2, Q / 2, n)
            score_H2Xn = q_XH2Q.permute(1, 2, 0, 3) @ self.half_keys.transpose(-1, -2)
            score_2XHn = score_H2Xn.permute(1, 2, 0, 3)
            score_XHk, index_XHk = product_topk(score_2XHn[0], score_2XHn[1], self.num_read)
            weight_XN = score_XHk.softmax(-1).flatten(1)
        batch_length = x_BLD.shape[:2]
        return Address(
            index_XHk.flatten(1).unflatten(0, batch_length),
            weight_XN.unflatten(0, batch_length),
            1,
        )


class ValueRead(nn.Module):
    """``out(sum of weighted values * silu(gate(x)))``; without a gate, ``out(sum)``."""

    def __init__(self, dim: int, *, gated: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim, bias=False) if gated else None
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BLD: Tensor, address: Address, context: Context) -> tuple[Tensor, Address]:
        rows_RD, slot_UD = context.bank
        row_U, index_BLN = None, address.index_BGN
        if needs_distinct_rows(rows_RD, slot_UD):
            row_U, index_BLN = distinct_rows(rows_RD, index_BLN, 0)
            address = address._replace(row_U=row_U)
        weight_BLN = address.weight_BGN
        read_XD = weighted_rows(
            rows_RD, row_U, index_BLN.flatten(0, 1), weight_BLN.flatten(0, 1), slot_UD
        )
        read_BLD = read_XD.unflatten(0, x_BLD.shape[:2])
        if self.gate is not None:
            read_BLD = read_BLD * F.silu(self.gate(x_BLD))
        if context.measure:
            health = {"effective_read": effective_number(weight_BLN)}
            address = address._replace(health=health)
        return self.out(read_BLD), address


def effective_number(weight_BLN: Tensor) -> Tensor:
    """How many rows a position really mixes: exp of the entropy of its weights, their sum taken as
    1; the mean over positions. Scalar."""
    share_BLN = weight_BLN / weight_BLN.sum(-1, keepdim=True)
    return torch.special.entr(share_BLN).sum(-1).exp().mean()


class ProductKeys(Kind):
    row_name = "value"
    decays_bank = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.settings = settings = self.memory.product_keys
        self.key_dim = settings.key_dim or config.dim // 2 // 2 * 2
        self._check()
        self.num_picked = settings.num_heads * settings.num_read
        self.bank_init_std = config.dim**-0.5
        # what the published code draws them from; values N(0, D^-1/2) too
        self.init_stds = {".memory.read.gate.weight": config.dim**-0.5}
        fans = config.dim + settings.num_heads * self.key_dim
        self.uniform_bounds = {
            ".memory.address.query.weight": math.sqrt(6 / fans),
            ".memory.address.half_keys": (self.key_dim // 2) ** -0.5,
        }

    @property
    def num_rows(self) -> int:
        return self.settings.num_keys**2

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.config.dim,)

    @property
    def read_words(self) -> str:
        return f"{self.settings.num_read} by each of {self.settings.num_heads} heads"

    def build_address(self) -> nn.Module:
        return KeyAddress(self.settings, self.config.dim, self.key_dim)

    def build_random_address(self) -> nn.Module:
        """The same; its parameters stay as they are drawn."""
        return self.build_address()

    def build_read(self) -> nn.Module:
        return ValueRead(self.config.dim, gated=self.memory.gate == "learned")

    def paper_flops(self, context_length: int, batch: int) -> int:
        settings, dim, tokens = self.settings, self.config.dim, batch * context_length
        queries, kept = tokens * settings.num_heads, min(settings.num_read, settings.num_keys)
        total = arithmetic.linear(tokens, dim, settings.num_heads * self.key_dim)
        if settings.query_norm != "none":
            total += arithmetic.norm(queries, self.key_dim)
        total += 2 * arithmetic.linear(queries, self.key_dim // 2, settings.num_keys)
        total += 2 * arithmetic.top_k(queries, settings.num_keys, kept)
        total += queries * kept**2  # sums
        total += arithmetic.top_k(queries, kept**2, settings.num_read)
        total += arithmetic.softmax(queries * settings.num_read)
        total += 2 * queries * settings.num_read * dim  # weighted sum
        total += arithmetic.linear(tokens, dim, dim)
        if self.memory.gate == "learned":
            total += arithmetic.linear(tokens, dim, dim) + 5 * tokens * dim
        return total

    def products(self, context_length: int, batch: int, *, gpu: bool) -> Products:
        settings, dim, tokens = self.settings, self.config.dim, batch * context_length
        address = arithmetic.linear(tokens, dim, settings.num_heads * self.key_dim)
        address += 2 * arithmetic.linear(
            tokens * settings.num_heads, self.key_dim // 2, settings.num_keys
        )
        maps = 2 if self.memory.gate == "learned" else 1
        read = maps * arithmetic.linear(tokens, dim, dim)
        return Products(address + read, saved=address if self.memory.address == "random" else 0)

    def activation_bytes(self, context_length: int, batch: int, width: int) -> int:
        settings, dim, tokens = self.settings, self.config.dim, batch * context_length
        # queries, as often as their norm keeps them, and their input in float32; index, place and
        # weight of every value read
        copies = {"none": 1, "layer": 2, "batch": 4}[settings.query_norm]
        queries = copies * settings.num_heads * self.key_dim
        address = 4 * (dim + queries) + self.num_picked * (4 * 8 + 2 * 4)
        read = width * (5 if self.memory.gate == "learned" else 2) * dim
        return tokens * (address + read)

    def _check(self) -> None:
        settings, where = self.settings, "model.memory.product_keys"
        if self.key_dim < 2 or self.key_dim % 2:
            raise ValueError(f"{where}.key_dim must be even, for its halves; it is {self.key_dim}")
        if settings.num_read > self.num_rows:
            raise ValueError(
                f"{where}.num_read is {settings.num_read}, but {settings.num_keys} half-keys make "
                f"only {self.num_rows} values"
            )
        check_choice("memory.product_keys.query_norm", settings.query_norm, get_args(QueryNorm))
