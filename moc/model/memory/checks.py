"""What checks of settings have in common."""

from __future__ import annotations


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"model.{name} {value!r} is none of {', '.join(choices)}")


def check_heads(where: str, dim: int, num_heads: int, num_kv_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"{where}.num_heads {num_heads} does not divide model.dim {dim}")
    if num_heads % num_kv_heads:
        raise ValueError(f"{where}.num_kv_heads {num_kv_heads} does not divide {num_heads} heads")
