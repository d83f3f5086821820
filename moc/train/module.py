"""The LightningModule: one phase of one arm.

One batch is one optimizer step: A micro-batches of B sequences of L + 1 tokens for this rank. So a
step's token count is known before its first backward pass, a checkpoint never falls between
micro-batches, and a step is skipped or counted once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from moc.config.schema import PhaseConfig
from moc.model.config import MemoryConfig
from moc.model.memory.bank import Bank
from moc.model.memory.router import Router, Routing
from moc.model.transformer import Block, ModelOutput, Transformer
from moc.ops.shards import like_shard, own_rows, shard_rows
from moc.train.bank_gradients import BankGradients, RowGradient
from moc.train.checkpoints import restore_optimizer
from moc.train.distributed import all_sum, full, world_size
from moc.train.lazy_adamw import LazyAdamW
from moc.train.optim import build_optimizer, freeze_groups, lr_factor, set_learning_rates
from moc.train.router_loss import picks_by_layer, router_loss


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
        freeze_groups(model, phase.optimizer)
        # ddp leaves these alone: ``BankGradients`` sums them over ranks
        self._ddp_params_and_buffers_to_ignore = [
            f"model.banks.{bank}.tokens" for bank in range(len(model.banks))
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
            # The root keeps embedding and norm. Banks are spread by chapter, and never gathered:
            # memory layers fetch what they read, gradients go to ``BankGradients``.
            for bank in self.model.banks:
                assert isinstance(bank, Bank)
                trains = bank.tokens.requires_grad
                bank.tokens = nn.Parameter(shard_rows(bank.tokens.detach(), mesh), trains)
            fully_shard(self.model, mesh=mesh, ignored_params=set(self.model.bank_tokens()))

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
        """One optimizer step.

        Returns (for the callbacks): ``loss`` (mean cross-entropy over the counted tokens of all
        ranks and micro-batches), ``grad_norm`` (before clipping), ``lr_factor``, ``skipped``, and
        what ``router_figures`` says of the routing groups of all ranks and micro-batches; None
        each without a router.
        """
        optimizer = self.optimizers(use_pl_optimizer=True)
        assert not isinstance(optimizer, list)
        factor = self.current_lr_factor()
        set_learning_rates(optimizer.optimizer, factor)
        tokens_ABL, mask_ABL = batch["tokens"], batch["loss_mask"]
        num_counted = all_sum(mask_ABL.sum()).clamp(min=1)
        num_micro = tokens_ABL.shape[0]
        nll_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        router_sums: list[Tensor] = []  # one per micro-batch
        bank_gradients = self._bank_gradients()
        for index, (tokens_BL, mask_BL) in enumerate(zip(tokens_ABL, mask_ABL, strict=True)):
            with self._sync_gradients(index == num_micro - 1):
                inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]
                slots = self.model.gradient_slots(*inputs_BL.shape) if bank_gradients else []
                output = self.model(
                    inputs_BL, targets_BL=targets_BL, counted_BL=mask_BL, slots=slots
                )
                nll = counted_nll(output)
                # Gradients are averaged over ranks; the data term is a sum over all of them.
                loss = nll * (world_size() / num_counted)
                routed = [layer for layer in output.routing if layer.logits_BGC.shape[-1]]
                if routed:
                    picks_LC = picks_by_layer(routed, self._memory())
                    loss = loss + router_loss(routed, picks_LC, self._memory()) / num_micro
                    router_sums.append(self._router_sums(routed, picks_LC))
                self.manual_backward(loss)
                if bank_gradients is not None:
                    bank_gradients.add(slots, output.routing)
            nll_sum = nll_sum + nll.detach()
        rows = self._give_to_banks(bank_gradients.finish()) if bank_gradients else {}
        grad_norm = self._clip_gradients(rows)
        loss_value = all_sum(nll_sum) / num_counted
        skipped = not bool(torch.isfinite(loss_value) & torch.isfinite(grad_norm))
        figures = router_figures(all_sum(torch.stack(router_sums).sum(0)) if router_sums else None)
        # the same on every rank: both figures are global
        if not skipped and not self.phase.no_op:
            if rows:
                assert isinstance(optimizer.optimizer, LazyAdamW)
                optimizer.optimizer.rows = rows
            optimizer.step()
            self._nudge_selection(figures["picks"])
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": loss_value,
            "grad_norm": grad_norm,
            "lr_factor": factor,
            "skipped": skipped,
            **figures,
        }

    def current_lr_factor(self) -> float:
        """Learning rate of the coming step over its peak; 0 in a ``no_op`` phase, whose optimizer
        is not even asked: Adam moments that the next phase may carry on stay what they were."""
        if self.phase.no_op:
            return 0.0
        total = self.phase.num_steps() + self.schedule_offset
        return lr_factor(self.step + self.schedule_offset, total, self.phase.schedule)

    def _router_sums(self, routed: list[Routing], picks_LC: Tensor) -> Tensor:
        """What ``router_figures`` needs of one micro-batch on this rank, float64."""
        rows = []
        for layer, picks_C in zip(routed, picks_LC, strict=True):
            # summed in float64, but not copied to it: with scope token this is one row per position
            logits_XC = layer.logits_BGC.detach().flatten(0, 1)
            probs_C = layer.probs_BGC.detach().flatten(0, 1).sum(0, dtype=torch.float64)
            squares_1 = logits_XC.logsumexp(-1).double().square().sum()[None]
            groups_1 = torch.full_like(squares_1, len(logits_XC))
            rows.append(torch.cat((picks_C, probs_C, squares_1, groups_1)))
        return torch.stack(rows)

    def _nudge_selection(self, picks_LC: Tensor | None) -> None:
        """Balance without a loss: every layer's selection bias moves by what the step picked."""
        if picks_LC is None or self.phase.optimizer.memory_layers.freeze:
            return
        rate = self._memory().router.bias_rate
        for router, picks_C in zip(routers(self.model).values(), picks_LC, strict=True):
            if router.selection_bias is not None:
                nudge(
                    router.selection_bias[router.num_shared :], picks_C[router.num_shared :], rate
                )

    def _memory(self) -> MemoryConfig:
        memory = self.model.config.memory
        assert memory is not None
        return memory

    def _sync_gradients(self, sync: bool) -> AbstractContextManager[None]:
        """Only a step's last backward pass needs to talk to the other ranks."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(sync)
            return nullcontext()
        wrapper = self.trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel) and not sync:
            return wrapper.no_sync()
        return nullcontext()

    def _bank_gradients(self) -> BankGradients | None:
        """None where no bank trains."""
        trains = any(tokens.requires_grad for tokens in self.model.bank_tokens())
        return BankGradients(self.model) if trains else None

    def _give_to_banks(self, of_bank: dict[int, RowGradient]) -> dict[Tensor, RowGradient]:
        """The rows that the lazy optimizer updates; without it they become ``grad``."""
        found: dict[Tensor, RowGradient] = {}
        for bank, rows in of_bank.items():
            tokens_CTM = self.model.bank_tokens()[bank]
            if self.phase.optimizer.lazy_bank:
                found[tokens_CTM] = rows
            else:
                grad_CTM = rows.dense(len(own_rows(tokens_CTM)))
                if isinstance(tokens_CTM, DTensor):
                    grad_CTM = like_shard(grad_CTM, tokens_CTM, tokens_CTM.device_mesh)
                tokens_CTM.grad = grad_CTM
        return found

    def _clip_gradients(self, rows: dict[Tensor, RowGradient]) -> Tensor:
        """Clip by global norm, ``rows`` included; the norm before clipping."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms = [full(get_total_norm(gradients))] if gradients else []
        for tokens_CTM, row in rows.items():
            square = torch.linalg.vector_norm(row.grad_UTM).square()
            sharded = isinstance(tokens_CTM, DTensor)  # else every rank has the same rows
            norms.append((all_sum(square) if sharded else square).sqrt())
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if limit := self.phase.optimizer.clip_norm:
            factor = (limit / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
            for row in rows.values():
                row.grad_UTM.mul_(factor)
        return norm


def counted_nll(output: ModelOutput) -> Tensor:
    """Sum of -log p(target) over the counted positions. Scalar float32, in nats."""
    assert output.nll is not None
    return output.nll


def nudge(bias_C: Tensor, picks_C: Tensor, rate: float) -> None:
    """Move the bias of routed chapters, in place, by ``rate`` toward even use: up for those picked
    less often than the mean, down for the others (arXiv 2408.15664, algorithm 1)."""
    above_C = picks_C * picks_C.numel() - picks_C.sum()  # picks minus their mean, exact in integers
    bias_C -= rate * above_C.sign()


def routers(model: Transformer) -> dict[int, Router]:
    """The routers of ``model`` by layer, in depth order."""
    return {
        layer: block.memory.router
        for layer, block in enumerate(model.blocks)
        if isinstance(block, Block) and block.memory is not None and block.memory.router is not None
    }


def router_figures(sums: Tensor | None) -> dict[str, Tensor | None]:
    """Of each memory layer over a whole step: ``picks`` (layers, C), how many groups picked each
    chapter, and the unweighted ``balance_loss`` and ``z_loss`` (layers,).

    Args:
        sums: (layers, 2 C + 2), over routing groups: picks of each chapter, their probabilities,
            logsumexp(logits)^2, and the number of groups. None without a router.
    """
    if sums is None:
        return {"picks": None, "balance_loss": None, "z_loss": None}
    num_chapters = sums.shape[1] // 2 - 1
    picks_LC, probs_LC = sums[:, :num_chapters], sums[:, num_chapters:-2]
    squares_L, groups_L = sums[:, -2], sums[:, -1]
    return {
        "picks": picks_LC.long(),
        "balance_loss": num_chapters * (picks_LC * probs_LC).sum(-1) / groups_L.square(),
        "z_loss": squares_L / groups_L,
    }
