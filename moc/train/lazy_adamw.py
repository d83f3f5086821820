"""AdamW that touches only the rows which a step has read. Needs torch alone.

R rows of a bank, X their shape, U rows read in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moc.ops.shards import own_rows
from moc.train.bank_gradients import RowGradient

_VALUES = 2**20  # at a time, in whole rows, which stay in or near a CPU's caches


class LazyAdamW(torch.optim.AdamW):
    """AdamW, in which every row of a bank has a time of its own.

    A group with ``lazy: True`` is updated in the rows that ``rows`` names (of a parameter with
    a ``grad``: in all), the others as usual. To a row, time stands still while nobody reads it:
    moments, weight decay and bias correction are those of AdamW on the steps that have read it, at
    those steps' learning rates. Against dense AdamW that leaves out two things: an idle row
    does not decay, and does not go on moving by its old momentum. It is another experimental
    condition, and not just another speed.

    State of a lazy parameter: ``step`` (R,), float32, how often each row was updated; ``exp_avg``
    and ``exp_avg_sq`` as of AdamW. Of a sharded parameter all three are sharded alike, and ``rows``
    are those of the rank's shard: a rank updates what it owns.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.rows: dict[Tensor, RowGradient] = {}  # what the coming step takes

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        lazy = [group for group in self.param_groups if group.get("lazy")]
        for group in lazy:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad_RX = own_rows(parameter.grad)
                    every_R = torch.arange(len(grad_RX), device=grad_RX.device)
                    self.rows[parameter] = RowGradient(every_R, grad_RX)
                    parameter.grad = None
        loss = super().step(closure)
        for group in lazy:
            for parameter in group["params"]:
                if parameter in self.rows:
                    self._update_rows(parameter, self.rows.pop(parameter), group)
        return loss

    def _update_rows(self, parameter: Tensor, rows: RowGradient, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros_like(parameter.flatten(1)[:, 0], dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
        own = {name: own_rows(x) for name, x in state.items()}
        own_RX = own_rows(parameter)
        beta1, beta2 = group["betas"]
        lr = group["lr"]
        size = max(1, _VALUES // max(1, own_RX[0].numel() if len(own_RX) else 1))
        pieces = zip(rows.row_U.split(size), rows.grad_UX.split(size), strict=True)
        for row_U, grad_UX in pieces:
            step_U = own["step"].index_select(0, row_U) + 1
            own["step"].index_copy_(0, row_U, step_U)
            step_U1 = step_U.view(-1, *[1] * (parameter.ndim - 1)).double()
            correction1_U1, correction2_U1 = (
                (1 - beta**step_U1).to(parameter.dtype) for beta in (beta1, beta2)
            )
            mean_UX, square_UX, row_UX = (
                x.index_select(0, row_U) for x in (own["exp_avg"], own["exp_avg_sq"], own_RX)
            )
            mean_UX.lerp_(grad_UX, 1 - beta1)
            square_UX.mul_(beta2).addcmul_(grad_UX, grad_UX, value=1 - beta2)
            own["exp_avg"].index_copy_(0, row_U, mean_UX)
            own["exp_avg_sq"].index_copy_(0, row_U, square_UX)
            scale_UX = square_UX.div_(correction2_U1).sqrt_().add_(group["eps"])
            change_UX = mean_UX.div_(scale_UX).mul_(lr / correction1_U1)
            row_UX.mul_(1 - lr * group["weight_decay"]).sub_(change_UX)
            own_RX.index_copy_(0, row_U, row_UX)
