"""Norms of a head's query, before it is scored against keys.

B batch, L length, H heads, Q width of a query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5
MOMENTUM = 0.1  # of the running statistics, as torch.nn.BatchNorm1d's


def build_query_norm(name: str, width: int) -> nn.Module:
    match name:
        case "layer":
            return nn.LayerNorm(width, eps=EPS)
        case "batch":
            return QueryBatchNorm(width)
        case _:
            return nn.Identity()


class QueryBatchNorm(nn.Module):
    """Batch norm over the features of a query, one set of them for all heads (arXiv 1907.05242).

    In training by the statistics of the micro-batch and rank, so that a position's query then
    depends on others; otherwise by running ones, so that it does not. Those move only in
    ``commit``, once an optimizer step: neither recomputed blocks nor skipped steps move them.
    """

    running_mean_Q: Tensor
    running_var_Q: Tensor
    seen_2Q: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean_Q", torch.zeros(width))
        self.register_buffer("running_var_Q", torch.ones(width))
        self.register_buffer("seen_2Q", torch.zeros(2, width), persistent=False)

    def forward(self, q_BLHQ: Tensor) -> Tensor:
        q_PQ = q_BLHQ.flatten(0, -2)
        if not self.training:
            mean_Q, var_Q = self.running_mean_Q, self.running_var_Q
            normed_PQ = F.batch_norm(q_PQ, mean_Q, var_Q, self.weight, self.bias, False, 0.0, EPS)
            return normed_PQ.view_as(q_BLHQ)
        var_Q, mean_Q = torch.var_mean(q_PQ, dim=0, correction=0)
        with torch.no_grad():
            self.seen_2Q.copy_(torch.stack((mean_Q, var_Q)))
        normed_PQ = (q_PQ - mean_Q) * (var_Q + EPS).rsqrt() * self.weight + self.bias
        return normed_PQ.view_as(q_BLHQ)

    @torch.no_grad()
    def commit(self, seen_2Q: Tensor) -> None:
        """Move the running statistics toward ``seen_2Q``, mean and variance."""
        self.running_mean_Q.lerp_(seen_2Q[0], MOMENTUM)
        self.running_var_Q.lerp_(seen_2Q[1], MOMENTUM)
