"""What Triton's interpreter does not do as a GPU."""

from __future__ import annotations

import pytest
import torch


def bfloat16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies bfloat16 numbers as the integers that hold them, and cuts float32
    numbers off; a GPU rounds them to the nearest."""
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot
    convert = interpreter._convert_float

    def widened(x):
        if x.dtype != interpreter.tl.bfloat16:
            return x
        data = (x.data.astype("uint32") << 16).view("float32")
        return interpreter.TensorHandle(data, interpreter.tl.float32)

    def rounded(x, dtype, to_dtype, rounding_mode):
        if (dtype, to_dtype) != (interpreter.tl.float32, interpreter.tl.bfloat16):
            return convert(x, dtype, to_dtype, rounding_mode)
        return torch.tensor(x).bfloat16().view(torch.int16).numpy().view("uint16")

    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest),
    )
    monkeypatch.setattr(interpreter, "_convert_float", rounded)
