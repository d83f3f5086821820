"""Which chapters a routing group reads, and with what weight.

B batch, L length, D model dim, C chapters, S shared, K routed, N = S + K read, G routing groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.config import MemoryConfig


class Routing(NamedTuple):
    """One memory layer's choice for a batch. Groups are consecutive, equal parts of a sequence."""

    logits_BGC: Tensor  # before the shared chapters are masked out; empty (C = 0) without a router
    probs_BGC: Tensor  # softmax over the routed chapters; 0 at shared ones
    index_BGN: Tensor  # chapters read, the shared ones first
    weight_BGN: Tensor  # mixing weights, summing to 1
    shared_mass: Tensor | None = None  # share of attention on shared chapters, when asked for


class Router(nn.Module):
    """Pool, project, pick the top K of the C - S chapters that are not shared.

    Source: arXiv 2603.21096, sections 3.2 and 3.3. Everything is float32 under autocast.
    """

    def __init__(self, config: MemoryConfig, dim: int) -> None:
        super().__init__()
        assert config.num_routed is not None
        self.num_shared, self.num_routed = config.num_shared, config.num_routed
        self.routed_scale = config.routed_scale
        self.scope = config.router.scope
        self.linear = nn.Linear(dim, config.num_chapters)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None) -> Routing:
        with torch.autocast(x_BLD.device.type, enabled=False):
            wide = self.linear.weight.dtype
            logits_BGC = self.linear(pool_groups(x_BLD.to(wide), valid_BL, self.scope))
            masked_BGC = logits_BGC.clone()
            masked_BGC[..., : self.num_shared] = float("-inf")
            probs_BGC = masked_BGC.softmax(-1)
            top_BGK, index_BGK = probs_BGC.topk(self.num_routed, dim=-1)
            routed_BGK = self.routed_scale * top_BGK / top_BGK.sum(-1, keepdim=True)
            shared_S = torch.arange(self.num_shared, device=x_BLD.device)
            index_BGN = torch.cat((shared_S.expand(*index_BGK.shape[:2], -1), index_BGK), dim=-1)
            weight_BGN = F.pad(routed_BGK, (self.num_shared, 0), value=1.0)
            weight_BGN = weight_BGN / weight_BGN.sum(-1, keepdim=True)
        return Routing(logits_BGC, probs_BGC, index_BGN, weight_BGN)


def read_everything(num_chapters: int, batch: int, like: Tensor) -> Routing:
    """The routing of a layer without a router: every chapter, equally."""
    index_BGN = torch.arange(num_chapters, device=like.device).expand(batch, 1, -1)
    wide = torch.promote_types(like.dtype, torch.float32)
    weight_BGN = torch.full(index_BGN.shape, 1 / num_chapters, dtype=wide, device=like.device)
    none_BGC = like.new_zeros(batch, 1, 0)
    return Routing(none_BGC, none_BGC, index_BGN, weight_BGN)


def pool_groups(x_BLD: Tensor, valid_BL: Tensor | None, scope: str) -> Tensor:
    """Mean over the positions that each routing group sees: (B, G, D).

    ``sequence``: one group, all valid positions, later ones included: not causal.
    """
    match scope:
        case "sequence":
            if valid_BL is None:
                return x_BLD.mean(1, keepdim=True)
            kept_BLD = x_BLD.masked_fill(~valid_BL[..., None], 0.0)
            count_B11 = valid_BL.sum(1)[:, None, None].clamp(min=1)
            return kept_BLD.sum(1, keepdim=True) / count_B11
    raise ValueError(f"router.scope {scope!r} is not one of: sequence")


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


def pick_counts(index_BGN: Tensor, num_chapters: int, num_shared: int) -> Tensor:
    """How many groups picked each chapter, (C,) int64; shared chapters are never picked."""
    picked_P = index_BGN[..., num_shared:].flatten()
    counts_C = torch.zeros(num_chapters, dtype=torch.int64, device=picked_P.device)
    # not bincount, which waits for the GPU to learn the size of its result
    return counts_C.scatter_add_(0, picked_P, torch.ones_like(picked_P))
