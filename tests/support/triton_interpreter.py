"""Triton's interpreter: what it does not do as a GPU, and what it does far too often."""

from __future__ import annotations

import functools
import inspect
from typing import Any

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


def look_up_builtins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a kernel or a function of one is called, the interpreter goes through all members of
    Triton's modules for those that it must replace: two fifths of the time of small kernels. They
    are the same ones each time, less those that an outer call has replaced."""
    from triton.runtime import interpreter

    @functools.cache
    def builtins_of(package: Any) -> list[tuple[str, Any]]:
        members = inspect.getmembers(package)
        return [(name, each) for name, each in members if interpreter.tl.core.is_builtin(each)]

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins_of(package):
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    monkeypatch.setattr(interpreter, "_patch_builtin", patch)
