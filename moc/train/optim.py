"""Optimizer groups and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from moc.config.schema import GroupConfig, OptimizerConfig, ScheduleConfig
from moc.errors import ConfigError
from moc.model.transformer import parameter_group
from moc.train.lazy_adamw import LazyAdamW


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool) -> LazyAdamW:
    """AdamW over the parameters that train, grouped by name.

    Every group carries ``peak_lr``; ``set_learning_rates`` scales it. Names rather than shapes
    decide, because sharding flattens parameters.

    Raises:
        ConfigError: if everything is frozen.
    """
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = not name.endswith(("norm.weight", ".bias"))
            members.setdefault((parameter_group(name), decayed), []).append(parameter)
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
    return LazyAdamW(groups, betas=betas, eps=config.eps, fused=fused)


def freeze_groups(model: nn.Module, config: OptimizerConfig) -> None:
    """Stop gradients of the groups that the phase freezes; the others train."""
    for name, parameter in model.named_parameters():
        group: GroupConfig = getattr(config, parameter_group(name))
        parameter.requires_grad_(not group.freeze)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def lr_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Learning rate of 0-based ``step`` over its peak.

    Warm-up rises linearly and reaches 1 at step ``warmup_steps - 1``. The decay starts at step
    ``num_steps * (1 - decay_fraction)`` (wsd) or after the warm-up (cosine, linear) and would
    reach ``final_ratio`` at step ``num_steps``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = config.warmup_steps
    if config.kind == "wsd":
        start = max(start, round(num_steps * (1 - config.decay_fraction)))
    progress = max(0.0, (step - start) / max(1, num_steps - start))
    match config.kind:
        case "constant":
            return 1.0
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        case "linear" | "wsd":
            share = 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * share
