"""Which chapters a routing group reads, and with what weight.

B batch, L length, D model dim, C chapters, S shared, K routed, N = S + K read, G routing groups.
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.config import ChaptersConfig, RouterConfig
from moc.model.memory.seam import Address, Context, Kind


class Chooses(Protocol):
    """What a layer keeps while it decodes, as far as it chooses chapters."""

    def choose(
        self, router: Router | RandomRouter | None, x_BLD: Tensor, num_chapters: int
    ) -> Address: ...


class ChapterAddress(nn.Module):
    """The chapters that a router picks for every group of positions; without one, all."""

    def __init__(self, router: Router | RandomRouter | None) -> None:
        super().__init__()
        self.router = router

    def forward(self, x_BLD: Tensor, context: Context) -> Address:
        num_chapters, state = len(context.bank.rows_RX), context.state
        looks_at_BLD = context.stream_BLD
        if isinstance(self.router, RandomRouter):
            looks_at_BLD = context.tokens_BL[..., None].to(torch.float32)
        if state is not None:
            return cast(Chooses, state).choose(self.router, looks_at_BLD, num_chapters)
        if self.router is None:
            batch, length, _ = x_BLD.shape
            return read_everything(num_chapters, batch, length, x_BLD)
        return self.router(looks_at_BLD, context.pool_BL)


class Router(nn.Module):
    """Pool, project, pick the top K of the C - S chapters that are not shared.

    Source: arXiv 2603.21096, sections 3.2 and 3.3; the selection bias is that of balancing without
    an auxiliary loss (arXiv 2408.15664), added to the logits. Everything is float32 under autocast.
    """

    selection_bias: Tensor | None

    def __init__(self, config: ChaptersConfig, dim: int) -> None:
        super().__init__()
        assert config.num_routed is not None
        self.num_shared, self.num_routed = config.num_shared, config.num_routed
        self.routed_scale, self.normalise = config.routed_scale, config.normalise
        self.config = config.router
        self.takes_turns = False  # set by benchmarks: chapters in turn, by place in the batch
        self.linear = nn.Linear(dim, config.num_chapters)
        # moved by training; changes which chapters are picked, never their weights
        biased = self.config.bias_rate > 0
        self.register_buffer("selection_bias", torch.zeros(config.num_chapters) if biased else None)

    def forward(self, x_BLD: Tensor, pool_BL: Tensor | None) -> Address:
        """Route a whole batch of sequences; ``pool_BL``: what ``sequence`` scope may pool."""
        width = group_tokens(self.config, x_BLD.shape[1])
        with torch.autocast(x_BLD.device.type, enabled=False):
            r_BGD = pool_groups(x_BLD.to(self.dtype), pool_BL, self.config)
            group_G = torch.arange(r_BGD.shape[1], device=r_BGD.device)
            return self.choose(r_BGD, group_G, width)

    @property
    def dtype(self) -> torch.dtype:
        """In which it wants to be asked."""
        return self.linear.weight.dtype

    def choose(self, r_BGD: Tensor, group_G: Tensor, width: int) -> Address:
        """Chapters and mixing weights for groups numbered ``group_G`` (or (B, G)), of ``width``."""
        logits_BGC = self.linear(r_BGD)
        masked_BGC = logits_BGC.clone()
        masked_BGC[..., : self.num_shared] = float("-inf")
        probs_BGC = masked_BGC.softmax(-1)
        biased = masked_BGC if self.selection_bias is None else masked_BGC + self.selection_bias
        index_BGK = biased.topk(self.num_routed, dim=-1).indices
        if self.takes_turns:
            index_BGK = self._in_turn(index_BGK, group_G)
        if self.normalise == "none":
            routed_BGK = self.routed_scale * probs_BGC.gather(-1, index_BGK)
        else:
            # probabilities renormalised over the picks; from logits, because all of the
            # probabilities can have underflowed when the picks were not the router's own
            routed_BGK = self.routed_scale * logits_BGC.gather(-1, index_BGK).softmax(-1)
        if self.config.balance_over == "all":
            probs_BGC = logits_BGC.softmax(-1)
        address = _with_shared(index_BGK, routed_BGK, self.num_shared, width, self.normalise)
        return address._replace(logits_BGC=logits_BGC, probs_BGC=probs_BGC)

    def _in_turn(self, index_BGK: Tensor, group_G: Tensor) -> Tensor:
        """K consecutive chapters each: rows side by side, a row's groups far apart."""
        device = index_BGK.device
        num_routable = self.linear.out_features - self.num_shared
        apart = _turns_apart(num_routable, self.num_routed)
        turn_BG = torch.arange(index_BGK.shape[0], device=device)[:, None] + apart * group_G
        step_K = torch.arange(self.num_routed, device=device)
        in_turn_BGK = (turn_BG[..., None] * self.num_routed + step_K) % num_routable
        return (in_turn_BGK + self.num_shared).expand_as(index_BGK)


class RandomRouter(nn.Module):
    """Chooses by no content: a token's chapters by its id, a segment's by its number."""

    dtype = torch.float32  # token ids up to 2^24 are exact

    def __init__(self, kind: Kind, config: ChaptersConfig) -> None:
        super().__init__()
        self.kind, self.config = kind, config.router
        self.routed_scale, self.normalise = config.routed_scale, config.normalise

    def forward(self, token_BL1: Tensor, pool_BL: Tensor | None) -> Address:
        """Route a whole batch of token ids."""
        width = group_tokens(self.config, token_BL1.shape[1])
        group_G = torch.arange(-(-token_BL1.shape[1] // width), device=token_BL1.device)
        return self.choose(token_BL1[:, : len(group_G)], group_G, width)

    def choose(self, r_BG1: Tensor, group_G: Tensor, width: int) -> Address:
        """As of ``Router``; only scope ``token`` looks at ``r_BG1``, the token's id."""
        key_BG = group_G.expand(r_BG1.shape[:2])
        if self.config.scope == "token":
            key_BG = r_BG1[..., 0].long()
        index_BGK = self.kind.random_rows(key_BG)
        weight_BGK = torch.full_like(index_BGK, 1 / index_BGK.shape[-1], dtype=torch.float32)
        routed_BGK = self.routed_scale * weight_BGK
        return _with_shared(index_BGK, routed_BGK, self.kind.num_always, width, self.normalise)


def _with_shared(
    index_BGK: Tensor, routed_BGK: Tensor, num_shared: int, width: int, normalise: str
) -> Address:
    """The shared chapters first, with weight 1 each; all weights normalised to sum to 1 if so."""
    shared_S = torch.arange(num_shared, device=index_BGK.device)
    index_BGN = torch.cat((shared_S.expand(*index_BGK.shape[:2], -1), index_BGK), dim=-1)
    weight_BGN = F.pad(routed_BGK, (num_shared, 0), value=1.0)
    if normalise == "joint":
        weight_BGN = weight_BGN / weight_BGN.sum(-1, keepdim=True)
    return Address(index_BGN, weight_BGN, width)


def read_everything(num_chapters: int, batch: int, length: int, like: Tensor) -> Address:
    """The routing of a layer without a router: every chapter, equally."""
    index_BGN = torch.arange(num_chapters, device=like.device).expand(batch, 1, -1)
    wide = torch.promote_types(like.dtype, torch.float32)
    weight_BGN = torch.full(index_BGN.shape, 1 / num_chapters, dtype=wide, device=like.device)
    return Address(index_BGN, weight_BGN, length)


def group_tokens(config: RouterConfig, length: int) -> int:
    """Positions per routing group in sequences of ``length``."""
    match config.scope:
        case "sequence":
            return length
        case "segment":
            return min(config.segment_tokens, length)
        case "token":
            return 1


def pool_groups(x_BLD: Tensor, pool_BL: Tensor | None, config: RouterConfig) -> Tensor:
    """Mean over the positions that each routing group's router sees: (B, G, D).

    ``sequence``: one group; all positions where ``pool_BL`` is set, later ones included: not
    causal. ``segment``: positions up to and including the segment's first, at most the last
    ``window_tokens``. ``token``: the position itself. The causal scopes need no ``pool_BL``:
    padding is on the right, where they do not look.
    """
    match config.scope:
        case "sequence":
            if pool_BL is None:
                return x_BLD.mean(1, keepdim=True)
            kept_BLD = x_BLD.masked_fill(~pool_BL[..., None], 0.0)
            count_B11 = pool_BL.sum(1)[:, None, None].clamp(min=1)
            return kept_BLD.sum(1, keepdim=True) / count_B11
        case "segment":
            first_G = torch.arange(0, x_BLD.shape[1], config.segment_tokens, device=x_BLD.device)
            sums_BLD = running_sums(x_BLD, config.window_tokens)
            return mean_of_last(sums_BLD, first_G.expand(len(x_BLD), -1), config.window_tokens).to(
                x_BLD.dtype
            )
        case "token":
            return x_BLD


def running_sums(x_BLD: Tensor, window: int | None) -> Tensor:
    """Sums over the positions up to and including each; in float64 where a window will subtract
    two of them, which over thousands of positions would cancel most of float32's digits."""
    return x_BLD.cumsum(1, dtype=None if window is None else torch.float64)


def mean_of_last(sums_BLD: Tensor, position_BG: Tensor, window: int | None) -> Tensor:
    """Means over the last ``window`` positions (None: all) up to each of ``position_BG``.

    Args:
        sums_BLD: sums over the positions up to and including each.
    """
    row_B1 = torch.arange(len(sums_BLD), device=sums_BLD.device)[:, None]
    sum_BGD = sums_BLD[row_B1, position_BG]  # unlike gather, keeps no copy for backward
    count_BG = position_BG + 1
    if window is not None:
        before_BG = position_BG - window
        earlier_BGD = sums_BLD[row_B1, before_BG.clamp(min=0)]
        sum_BGD = sum_BGD - earlier_BGD.masked_fill((before_BG < 0)[..., None], 0.0)
        count_BG = count_BG.clamp(max=window)
    return sum_BGD / count_BG[..., None]


def _turns_apart(num_routable: int, num_routed: int) -> int:
    """Turns from a group to the next: a golden section of a round, so that the turns of few groups
    lie evenly (a step of one would load rows and groups twice), and all have come in the end."""
    num_turns = num_routable // math.gcd(num_routable, num_routed)
    apart = round(0.618 * num_routable / num_routed)
    while math.gcd(apart, num_turns) > 1:
        apart += 1
    return apart


def balance_loss(probs_XC: Tensor, picks_C: Tensor) -> Tensor:
    """C * sum_c f_c P_c over X routing groups (arXiv 2603.21096, section 3.4). Scalar.

    f_c is the share of groups that picked chapter c: ``picks_C / X``, summing to K, no gradient.
    P_c is the chapter's mean probability.
    """
    num_groups, num_chapters = probs_XC.shape
    return num_chapters * (picks_C / num_groups * probs_XC.mean(0)).sum()


def z_loss(logits_XC: Tensor) -> Tensor:
    """mean(logsumexp(logits)^2) over X routing groups. Scalar."""
    return logits_XC.logsumexp(-1).square().mean()
