"""Initial values of a model's parameters."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from moc.model.config import ModelConfig
from moc.model.layers import FusedLinear
from moc.model.memory.build import build_memory

# Names under which parameters are drawn: the seam added a level to some, and a rename must not draw
# other weights than the published results were made with.
_DRAWN_AS = ((".memory.address.", ".memory."), (".memory.read.", ".memory."), (".rows", ".tokens"))


@torch.no_grad()
def draw_parameters(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill the parameters of a ``Transformer``; what it is made with stays only in norms.

    Every parameter is drawn from a generator of its own, seeded by (seed, name): two arms with one
    seed start from the same backbone, whatever else they contain.
    """
    bounds = build_memory(config).uniform_bounds if config.memory is not None else {}
    for name, parameter in model.named_parameters():
        std, bound = _init_std(name, config), _of_ending(name, bounds)
        if std is None:
            continue  # norms stay at one
        for part_name, part in _parts(model, name, parameter):
            for name_now, name_then in _DRAWN_AS:
                part_name = part_name.replace(name_now, name_then)
            digest = hashlib.sha256(f"{seed}/{part_name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            if bound is not None:
                part.uniform_(-bound, bound, generator=generator)
            elif std:
                part.normal_(0.0, std, generator=generator)
            else:
                part.zero_()


def _parts(model: nn.Module, name: str, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """What is drawn by itself: the maps of a fused projection are ``<parent>.<part>.weight``."""
    owner = name.rpartition(".")[0]
    module = model.get_submodule(owner)
    if not isinstance(module, FusedLinear):
        return [(name, parameter)]
    parent = owner.rpartition(".")[0]
    rows = parameter.split(list(module.parts.values()))
    return [(f"{parent}.{part}.weight", row) for part, row in zip(module.parts, rows, strict=True)]


def _init_std(name: str, config: ModelConfig) -> float | None:
    """None: leave at its default (norm weights); 0: zero."""
    residual = config.residual_init_std
    if residual is None:
        residual = config.init_std / (2 * config.num_layers) ** 0.5
    if name.endswith("norm.weight"):
        return None
    if name.endswith(".bias"):
        return 0.0
    if name.startswith("banks."):
        assert config.memory is not None
        std = config.memory.bank_init_std
        return build_memory(config).bank_init_std if std is None else std
    if name.endswith("memory.read.out.weight"):
        assert config.memory is not None
        return 0.0 if config.memory.output_init == "zero" else residual
    if config.memory is not None:
        of_kind = _of_ending(name, build_memory(config).init_stds)
        if of_kind is not None:
            return of_kind
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        return residual
    return config.init_std


def _of_ending(name: str, values: dict[str, float]) -> float | None:
    """The value of the ending that ``name`` has."""
    return next((value for ending, value in values.items() if name.endswith(ending)), None)
