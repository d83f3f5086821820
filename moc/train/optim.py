"""The optimizer of a phase: parameter groups by name, their learning rates. Needs torch alone."""

from __future__ import annotations

import torch
from torch import nn

from moc.config.schema import GroupConfig, OptimizerConfig
from moc.errors import ConfigError
from moc.model.transformer import Transformer, is_fixed, parameter_group
from moc.train.lazy_adamw import LazyAdamW

EPS = 1e-8  # of AdamW, as published (arXiv 2603.21096, tables 5 and 6)


def build_optimizer(model: Transformer, config: OptimizerConfig, *, fused: bool) -> LazyAdamW:
    """AdamW over the parameters that train, grouped by name.

    Every group carries ``peak_lr``; ``set_learning_rates`` scales it. Names rather than shapes
    decide, because sharding flattens parameters.

    Raises:
        ConfigError: if everything is frozen.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group_name = parameter_group(name)
            decayed = not name.endswith(("norm.weight", ".bias"))
            if group_name == "bank":
                decayed = model.kind is not None and model.kind.decays_bank
            members.setdefault((group_name, decayed), []).append(parameter)
    if not members:
        raise ConfigError("every parameter group is frozen; nothing is left to train")
    groups = []
    for (group_name, decayed), parameters in members.items():
        group: GroupConfig = getattr(config, group_name)
        groups.append(
            {
                "params": parameters,
                "name": group_name,
                "peak_lr": group.lr,
                "lr": group.lr,
                "weight_decay": group.weight_decay if decayed else 0.0,
                "lazy": config.lazy_bank and group_name == "bank",
            }
        )
    betas = (config.beta1, config.beta2)
    return LazyAdamW(groups, betas=betas, eps=EPS, fused=fused)


def freeze_groups(model: Transformer, config: OptimizerConfig) -> None:
    """Stop gradients of the groups that the phase freezes, and of what never trains."""
    for name, parameter in model.named_parameters():
        group: GroupConfig = getattr(config, parameter_group(name))
        parameter.requires_grad_(not (group.freeze or is_fixed(name, model.config)))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
