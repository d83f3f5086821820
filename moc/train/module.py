"""The LightningModule: one phase of one arm.

One batch is one optimizer step: A micro-batches of B sequences of L + 1 tokens for this rank. So a
step's token count is known before its first backward pass, a checkpoint never falls between
micro-batches, and a step is skipped or counted once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from moc.config.schema import PhaseConfig
from moc.model.memory.bank import Bank
from moc.model.transformer import Transformer
from moc.ops.shards import shard_rows
from moc.train.checkpoints import restore_optimizer
from moc.train.lazy_adamw import LazyAdamW
from moc.train.optim import build_optimizer, freeze_groups, set_learning_rates
from moc.train.schedules import lr_factor
from moc.train.step import optimizer_step


class StudyModule(L.LightningModule):
    """Trains a ``Transformer`` through one phase.

    Args:
        model: on the CPU, with the weights that the phase starts from.
        start_step: optimizer steps of this phase that are already done.
        schedule_offset: steps of earlier phases that the schedule counts on from.
        compile_model: ``torch.compile`` the forward pass.
    """

    def __init__(
        self,
        model: Transformer,
        phase: PhaseConfig,
        *,
        start_step: int = 0,
        schedule_offset: int = 0,
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.phase = phase
        self.step = start_step
        self.schedule_offset = schedule_offset
        self.compile_model = compile_model
        self.optimizer_state: dict[str, Any] | None = None  # set to restore one
        # of loss and gradient norm, set by who watches them: may the weights take this step?
        self.accept: Callable[[float, float], bool] = lambda loss, grad_norm: True
        freeze_groups(model, phase.optimizer)
        # ddp leaves these alone: ``BankGradients`` sums them over ranks
        self._ddp_params_and_buffers_to_ignore = [
            f"model.banks.{bank}.rows" for bank in range(len(model.banks))
        ]

    def configure_model(self) -> None:
        if isinstance(self.model, FSDPModule):
            return
        if self.compile_model:
            self.model.compile()
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            for block in self.model.blocks:
                fully_shard(block, mesh=mesh)
            # The root keeps embedding and norm. Banks are spread by row, and never gathered:
            # memory layers fetch what they read, gradients go to ``BankGradients``.
            for bank in self.model.banks:
                assert isinstance(bank, Bank)
                trains = bank.rows.requires_grad
                bank.rows = nn.Parameter(shard_rows(bank.rows.detach(), mesh), trains)
            fully_shard(self.model, mesh=mesh, ignored_params=set(self.model.bank_rows()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        sharded = isinstance(self.model, FSDPModule)
        return build_optimizer(self.model, self.phase.optimizer, fused=not sharded)

    def on_train_start(self) -> None:
        if self.optimizer_state is not None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            restore_optimizer(self.model, optimizer, self.optimizer_state)
            self.optimizer_state = None

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """One optimizer step; for the callbacks, ``lr_factor`` and the fields of ``StepResult``."""
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert not isinstance(optimizer, list)
        adamw = optimizer.optimizer
        assert isinstance(adamw, LazyAdamW)
        factor = self.current_lr_factor()
        set_learning_rates(adamw, factor)
        result = optimizer_step(
            self.model,
            adamw,
            batch["tokens"],
            batch["loss_mask"],
            pool_ABL=batch.get("real"),
            clip_norm=self.phase.optimizer.clip_norm,
            update=not self.phase.no_op,
            accept=self.accept,
            backward=self.manual_backward,
            take=optimizer.step,
            gradients_synced=self._gradients_synced,
        )
        self.step += 1
        return {"lr_factor": factor, **result._asdict()}

    def current_lr_factor(self) -> float:
        """Learning rate of the coming step over its peak; 0 in a ``no_op`` phase, whose optimizer
        is not even asked: Adam moments that the next phase may carry on stay what they were."""
        if self.phase.no_op:
            return 0.0
        total = self.phase.num_steps() + self.schedule_offset
        return lr_factor(self.step + self.schedule_offset, total, self.phase.schedule)

    def _gradients_synced(self, sync: bool) -> AbstractContextManager[None]:
        """Only a step's last backward pass needs to talk to the other ranks."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(sync)
            return nullcontext()
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel) and not sync:
            return wrapper.no_sync()
        return nullcontext()
