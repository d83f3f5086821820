"""What a memory layer keeps of an unfinished batch: its current choice, and its chapters.

B batch, L new positions, M positions kept at most, D model dim, H heads, J key/value heads, E head
dim, C chapters, T tokens per chapter, N chapters read, P parts of a row's new positions, Y
positions per part, R rows whose choice has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from moc.model.config import ChaptersConfig
from moc.model.decode.cache import DecodePolicy
from moc.model.decode.positions import Positions
from moc.model.memory.chapters.kept import KeptChapters
from moc.model.memory.chapters.router import (
    RandomRouter,
    Router,
    mean_of_last,
    pool_groups,
    read_everything,
    running_sums,
)
from moc.model.memory.seam import Address
from moc.ops import kept_attention, routed_attention


class Choices(NamedTuple):
    """What the new positions read: each row's fall into parts that read the same chapters.

    A row may have fewer parts than another, and end in padding: from the part of its last real
    position on they are all alike.
    """

    index_BPN: Tensor
    weight_BPN: Tensor
    width: int  # positions per part; a row's first and last may have fewer
    offset_B1: Tensor | None = None  # of part 0's width, positions before the call; None: none
    chosen_rows: list[int] | None = None  # with a new choice; None: all

    def part_BL(self, position_BL: Tensor) -> Tensor:
        """The part of every position, counted from the first."""
        step_BL = position_BL - position_BL[:, :1]
        return (step_BL if self.offset_B1 is None else step_BL + self.offset_B1) // self.width


class ChaptersState:
    """Of one memory layer: what its router has pooled, its current choice, its chapters.

    While tokens come one by one, keys and values of the current chapters are also kept side by side
    for every row: 2 * B * N * T * J * E numbers in every layer.
    """

    def __init__(
        self,
        config: ChaptersConfig,
        positions: Positions,
        policy: DecodePolicy,
        window_tokens: int | None,
    ) -> None:
        self.config, self.positions, self.policy = config.router, positions, policy
        self.routed = config.num_routed is not None
        self.window = window_tokens
        if config.router.scope == "segment":
            self.window = config.router.window_tokens
        self.chapters = KeptChapters()
        self.copies: tuple[Tensor, Tensor] | None = None  # (B, J, N * T, E) each
        self.sums_BMD: Tensor | None = None  # over the positions up to and including each
        self.choices: Choices | None = None  # of the call under way
        self.index_BN: Tensor | None = None  # of the last real position
        self.weight_BN: Tensor | None = None

    def choose(
        self, router: Router | RandomRouter | None, x_BLD: Tensor, num_chapters: int
    ) -> Address:
        """The chapters of the new positions; the router is asked only where a choice may change.

        ``router`` None: all ``num_chapters``.
        """
        if router is None:
            choices = self._everything(x_BLD, num_chapters)
        else:
            with torch.autocast(x_BLD.device.type, enabled=False):
                choices = self._route(router, x_BLD.to(router.dtype))
        self.index_BN, self.weight_BN = choices.index_BPN[:, -1], choices.weight_BPN[:, -1]
        self.choices = choices
        return self._address(choices)

    def _address(self, choices: Choices) -> Address:
        """The choices as index and weights of every new position."""
        index_BLN, weight_BLN = choices.index_BPN, choices.weight_BPN
        if index_BLN.shape[1] == 1:
            index_BLN = index_BLN.expand(-1, self.positions.num_new, -1)
            weight_BLN = weight_BLN.expand(-1, self.positions.num_new, -1)
        else:
            part_BL = choices.part_BL(self.positions.position_BL)
            part_BLN = part_BL[..., None].expand(-1, -1, index_BLN.shape[-1])
            index_BLN, weight_BLN = index_BLN.gather(1, part_BLN), weight_BLN.gather(1, part_BLN)
        return Address(index_BLN, weight_BLN, 1)

    def read(
        self,
        q_BLHE: Tensor,
        bank_CTM: Tensor,
        project: Callable[[Tensor], tuple[Tensor, Tensor]],
        *,
        mixing: str,
        scale: float,
    ) -> Tensor:
        """Outputs (B, L, H, E) for the last choice."""
        choices = self.choices
        assert choices is not None
        if choices.chosen_rows != []:
            self.chapters.fetch(choices.index_BPN, bank_CTM, project)
        weight_BPN = choices.weight_BPN
        if self._keeps_copies(choices):
            copies = self._copies(choices.chosen_rows)
            out_BHE = kept_attention(
                q_BLHE[:, 0], *copies, weight_BPN[:, 0], mixing=mixing, scale=scale
            )
            return out_BHE[:, None]
        self.copies = None
        length, num_parts = q_BLHE.shape[1], weight_BPN.shape[1]
        width = length if num_parts == 1 else min(choices.width, length)
        offset_B1 = choices.offset_B1 if num_parts > 1 else None
        queries = q_BLHE
        if offset_B1 is not None:  # bring the queries of a part together
            row_B1 = torch.arange(len(q_BLHE), device=q_BLHE.device)[:, None]
            first_BP = _first_BP(num_parts, choices.width, offset_B1)
            step_BPY = first_BP[..., None] + torch.arange(width, device=q_BLHE.device)
            queries = q_BLHE[row_B1, step_BPY.clamp(max=length - 1).flatten(1)]
        out_BLHE = routed_attention(
            queries,
            *self.chapters.table(),
            choices.index_BPN,
            weight_BPN,
            mixing=mixing,
            group_tokens=width,
            scale=scale,
        )
        if offset_B1 is not None:
            part_BL = choices.part_BL(self.positions.position_BL)
            step_L = torch.arange(length, device=q_BLHE.device)
            out_BLHE = out_BLHE[row_B1, part_BL * width + step_L - first_BP.gather(1, part_BL)]
        return out_BLHE

    def keep_rows(self, row_R: Tensor) -> None:
        self.copies = None
        if self.sums_BMD is not None:
            self.sums_BMD = self.sums_BMD[row_R]
        if self.index_BN is not None and self.weight_BN is not None:
            self.index_BN, self.weight_BN = self.index_BN[row_R], self.weight_BN[row_R]

    def _everything(self, x_BLD: Tensor, num_chapters: int) -> Choices:
        if self.positions.started:
            return self._current()
        routing = read_everything(num_chapters, len(x_BLD), x_BLD.shape[1], x_BLD)
        return Choices(routing.index_BGN, routing.weight_BGN, self.positions.max_length)

    def _current(self) -> Choices:
        assert self.index_BN is not None and self.weight_BN is not None
        index_B1N, weight_B1N = self.index_BN[:, None], self.weight_BN[:, None]
        return Choices(index_B1N, weight_B1N, self.positions.max_length, chosen_rows=[])

    def _route(self, router: Router | RandomRouter, x_BLD: Tensor) -> Choices:
        positions, position_BL = self.positions, self.positions.position_BL
        match self.config.scope:
            case "token":
                return self._parts(router.choose(x_BLD, position_BL, 1), 1)
            case "segment":
                return self._route_segments(router, x_BLD)
            case "sequence" if positions.started and self.policy == "prompt":
                return self._current()
        if self.policy == "running":
            self._add(x_BLD)
        if positions.started:
            assert self.sums_BMD is not None
            pooled_BLD = mean_of_last(self.sums_BMD, position_BL, self.window).to(x_BLD.dtype)
            return self._parts(router.choose(pooled_BLD, torch.zeros_like(position_BL), 1), 1)
        whole_B1D = pool_groups(x_BLD, positions.real_BL, self.config)
        fresh = router.choose(whole_B1D, torch.zeros_like(position_BL[:, :1]), 1)
        return Choices(fresh.index_BGN, fresh.weight_BGN, positions.max_length)

    def _route_segments(self, router: Router | RandomRouter, x_BLD: Tensor) -> Choices:
        positions, width, length = self.positions, self.config.segment_tokens, x_BLD.shape[1]
        sums_BMD = self._add(x_BLD)
        offsets = [n % width for n in positions.lengths]
        chosen_rows = [
            b for b, offset in enumerate(offsets) if not offset or offset + length > width
        ]
        if not chosen_rows:
            return self._current()
        num_parts = (max(offsets) + length - 1) // width + 1
        offset_B1 = torch.tensor(offsets, device=x_BLD.device)[:, None]
        first_BP = _first_BP(num_parts, width, offset_B1).clamp(max=length - 1)
        position_BP = positions.position_BL.gather(1, first_BP)
        pooled_BPD = mean_of_last(sums_BMD, position_BP, self.window).to(x_BLD.dtype)
        fresh = router.choose(pooled_BPD, position_BP // width, 1)
        if any(offsets):
            assert self.index_BN is not None and self.weight_BN is not None
            part_P = torch.arange(num_parts, device=x_BLD.device)
            old_BP1 = ((part_P == 0) & (offset_B1 > 0))[..., None]
            fresh = fresh._replace(
                index_BGN=torch.where(old_BP1, self.index_BN[:, None], fresh.index_BGN),
                weight_BGN=torch.where(old_BP1, self.weight_BN[:, None], fresh.weight_BGN),
            )
        choices = self._parts(fresh, width, offsets)
        return choices._replace(
            offset_B1=offset_B1 if any(offsets) else None, chosen_rows=chosen_rows
        )

    def _parts(self, routing: Address, width: int, offsets: list[int] | None = None) -> Choices:
        """A choice for each part; what begins past a row's last real position is not wanted."""
        index_BPN, weight_BPN = routing.index_BGN, routing.weight_BGN
        counts = self.positions.counts
        pairs = zip(offsets or [0] * len(counts), counts, strict=True)
        last = [(offset + max(count - 1, 0)) // width for offset, count in pairs]
        num_parts = index_BPN.shape[1]
        if min(last) < num_parts - 1:
            last_B1 = torch.tensor(last, device=index_BPN.device)[:, None]
            part_BP = torch.arange(num_parts, device=index_BPN.device).minimum(last_B1)
            part_BPN = part_BP[..., None].expand_as(index_BPN)
            index_BPN, weight_BPN = index_BPN.gather(1, part_BPN), weight_BPN.gather(1, part_BPN)
        return Choices(index_BPN, weight_BPN, width)

    def _add(self, x_BLD: Tensor) -> Tensor:
        """Sums over the positions up to and including each, the new ones added: (B, M, D)."""
        sums_BLD = running_sums(x_BLD, self.window)
        if self.sums_BMD is not None:
            sums_BLD = sums_BLD + self.positions.last(self.sums_BMD)
        self.sums_BMD = self.positions.store(self.sums_BMD, sums_BLD)
        return self.sums_BMD

    def _keeps_copies(self, choices: Choices) -> bool:
        """Not for a choice of one position, nor of all chapters, of which a copy per row is much;
        nor before there are signs of more single tokens to come."""
        return self.positions.one_by_one and self.routed and choices.width > 1

    def _copies(self, chosen_rows: list[int] | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the current chapters, new where there is a new choice."""
        assert self.index_BN is not None
        if self.copies is None or chosen_rows is None or len(chosen_rows) == len(self.index_BN):
            self.copies = self.chapters.copy(self.index_BN)
        elif chosen_rows:
            row_R = torch.tensor(chosen_rows, device=self.index_BN.device)
            copied = self.chapters.copy(self.index_BN[row_R])
            for kept_BJIE, new_RJIE in zip(self.copies, copied, strict=True):
                kept_BJIE[row_R] = new_RJIE
        return self.copies


def _first_BP(num_parts: int, width: int, offset_B1: Tensor) -> Tensor:
    """Where parts begin, counted from the row's first new position."""
    begin_P = width * torch.arange(num_parts, device=offset_B1.device)
    return (begin_P - offset_B1).clamp(min=0)
