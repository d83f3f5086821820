"""From the config's names to Lightning's strategies."""

from __future__ import annotations

from dataclasses import replace

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from moc.config.schema import TrainerConfig
from moc.errors import ConfigError
from moc.plan.arms import world_size
from moc.train.ranks import GROUP_TIMEOUT


def accelerator_of(config: TrainerConfig) -> str:
    if config.accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    return config.accelerator


def device_of(config: TrainerConfig) -> torch.device:
    """Where a model goes that is used outside training; a study that was trained on GPUs can be
    looked at where there is none."""
    on_gpu = accelerator_of(config) == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def num_devices(config: TrainerConfig) -> int:
    """Devices per node: as configured, else every GPU, or one CPU process.

    Raises:
        ConfigError: for GPUs that are not here.
    """
    if accelerator_of(config) != "gpu":
        return config.devices or 1
    found = torch.cuda.device_count()
    if not found:
        raise ConfigError("trainer.accelerator is gpu, but there is no GPU here; use auto or cpu")
    if config.devices is not None and config.devices > found:
        raise ConfigError(f"trainer.devices {config.devices} is more than the {found} GPUs here")
    return config.devices or found


def total_devices(config: TrainerConfig) -> int:
    """Devices over all nodes."""
    return world_size(replace(config, devices=num_devices(config)))


def build_strategy(config: TrainerConfig) -> Strategy | str:
    """``auto``: a single device where there is one, else ddp. ``fsdp``: FSDP2.

    FSDP2 comes as ``ModelParallelStrategy``; the older ``FSDPStrategy`` refuses CPUs and clipping
    by norm, and its full-file loading ignores ``weights_only``.
    """
    total = total_devices(config)
    match config.strategy:
        case "fsdp":
            return ModelParallelStrategy(
                data_parallel_size=total,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
                timeout=GROUP_TIMEOUT,
            )
        case "auto" if total == 1:
            return "auto"
        case _:
            return DDPStrategy(
                broadcast_buffers=False, gradient_as_bucket_view=True, timeout=GROUP_TIMEOUT
            )
