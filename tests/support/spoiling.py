"""A training loss made bad on purpose: in place of ``moc.train.step.predict``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from torch import Tensor

from moc.model.transformer import ModelOutput
from moc.train.step import predict


def spoiled(change: Callable[[int, Tensor], Tensor]) -> Callable[..., Any]:
    """``predict`` with its loss gone through ``change(forward pass counted from 0, loss)``."""
    passes = count()

    def spoiled_predict(*arguments: Any, **keywords: Any) -> tuple[ModelOutput, list[Tensor]]:
        output, slots = predict(*arguments, **keywords)
        assert output.nll is not None
        return output._replace(nll=change(next(passes), output.nll)), slots

    return spoiled_predict


def nan_in_second_step(index: int, loss: Tensor) -> Tensor:
    """Of a phase with two micro-batches a step."""
    return loss * (float("nan") if index // 2 == 1 else 1.0)
