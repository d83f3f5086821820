"""AdamW that touches only the chapters which a step has read. Needs torch alone.

C chapters, U chapters read in a step, T tokens per chapter, M memory width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moc.ops.shards import own_rows
from moc.train.bank_gradients import RowGradient

_ROWS = 64  # chapters at a time, which stay in a CPU's caches


class LazyAdamW(torch.optim.AdamW):
    """AdamW, in which every row of a bank has a time of its own.

    A group with ``lazy: True`` is updated in the chapters that ``rows`` names (of a parameter with
    a ``grad``: in all), the others as usual. To a chapter, time stands still while nobody reads it:
    moments, weight decay and bias correction are those of AdamW on the steps that have read it, at
    those steps' learning rates. Against dense AdamW that leaves out two things: an idle chapter
    does not decay, and does not go on moving by its old momentum. It is another experimental
    condition, and not just another speed.

    State of a lazy parameter: ``step`` (C,), float32, how often each row was updated; ``exp_avg``
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
                    grad_CTM = own_rows(parameter.grad)
                    every_C = torch.arange(len(grad_CTM), device=grad_CTM.device)
                    self.rows[parameter] = RowGradient(every_C, grad_CTM)
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
        own_CTM = own_rows(parameter)
        beta1, beta2 = group["betas"]
        lr = group["lr"]
        pieces = zip(rows.chapter_U.split(_ROWS), rows.grad_UTM.split(_ROWS), strict=True)
        for chapter_U, grad_UTM in pieces:
            step_U = own["step"].index_select(0, chapter_U) + 1
            own["step"].index_copy_(0, chapter_U, step_U)
            step_U11 = step_U.view(-1, *[1] * (parameter.ndim - 1)).double()
            correction1_U11, correction2_U11 = (
                (1 - beta**step_U11).to(parameter.dtype) for beta in (beta1, beta2)
            )
            mean_UTM, square_UTM, tokens_UTM = (
                x.index_select(0, chapter_U) for x in (own["exp_avg"], own["exp_avg_sq"], own_CTM)
            )
            mean_UTM.lerp_(grad_UTM, 1 - beta1)
            square_UTM.mul_(beta2).addcmul_(grad_UTM, grad_UTM, value=1 - beta2)
            own["exp_avg"].index_copy_(0, chapter_U, mean_UTM)
            own["exp_avg_sq"].index_copy_(0, chapter_U, square_UTM)
            scale_UTM = square_UTM.div_(correction2_U11).sqrt_().add_(group["eps"])
            change_UTM = mean_UTM.div_(scale_UTM).mul_(lr / correction1_U11)
            tokens_UTM.mul_(1 - lr * group["weight_decay"]).sub_(change_UTM)
            own_CTM.index_copy_(0, chapter_U, tokens_UTM)
