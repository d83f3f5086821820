"""Restarts rows that nobody reads, of kinds that choose them by a router.

C rows of a bank, R restarted ones.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from moc.data.hashing import stable_hash
from moc.model.transformer import Transformer
from moc.ops.shards import fetch_rows, own_rows, owned_rows
from moc.store.journal import Journal
from moc.train.addresses import routers
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

NOISE = 0.1  # of the source's standard deviation: parts the twins, and keeps what makes one useful


class Revival(L.Callback):
    """Every ``every`` steps, the rows of a bank that no layer picked since the last time
    become noisy copies of live ones, drawn in proportion to their picks.

    The rows of every router that reads the bank are copied too, and the Adam moments of all these
    rows start from zero. Neither a skipped step nor a phase's last one revives: the first must
    leave the weights alone, and after the last nothing would train the copies before they are
    scored. The draws depend on seed, phase, step and bank alone; the counts are saved with
    checkpoints.

    Args:
        every: optimizer steps of a phase between revivals.
        revivals: receives one record per bank that had any, ``revived`` giving for each restarted
            row the one that it was copied from.
    """

    def __init__(self, every: int, *, seed: int, revivals: Journal) -> None:
        self.every, self.seed, self.revivals = every, seed, revivals
        self.picks: Tensor | None = None  # (layers, C) since the last revival
        self.cannot = False

    def state_dict(self) -> dict[str, Any]:
        return {} if self.picks is None else {"picks": self.picks.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.picks = state_dict["picks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if self.picks is not None:
            self.picks = self.picks.to(pl_module.device)
        optimizer = pl_module.phase.optimizer
        frozen = [name for name in ("bank", "memory_layers") if getattr(optimizer, name).freeze]
        kind = pl_module.model.kind
        why = ""
        if kind is not None and kind.num_picked and not routers(pl_module.model):
            why = "no router chooses rows that could be copied"
        elif kind is not None and kind.memory.rows == "one":
            why = "the bank is a single row"
        elif frozen:
            why = f"it freezes {' and '.join(frozen)}"
        self.cannot = bool(why)
        if why and kind is not None and kind.num_picked and trainer.is_global_zero:
            what = f"phase {trainer.logger.phase}: no {kind.row_name} is revived"
            print(f"{what}: {why}", flush=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        logger, step, model = trainer.logger, pl_module.step, pl_module.model
        if self.cannot or outputs["skipped"] or outputs["use"] is None:
            return
        self.picks = outputs["use"] if self.picks is None else self.picks + outputs["use"]
        if step % self.every or step == logger.num_steps:
            return
        picks_LC, num_revived = self.picks.cpu(), 0
        self.picks = None
        kind = model.kind
        assert kind is not None
        for bank in range(len(model.banks)):
            readers = [model.bank_of_layer[layer] == bank for layer in routers(model)]
            picks_C = picks_LC[torch.tensor(readers)].sum(0)
            key = stable_hash(self.seed, "revival", logger.phase, step, bank)
            generator = torch.Generator().manual_seed(key >> 1)  # takes 63 bits
            dead_R, source_R = draw_sources(picks_C, kind.num_always, generator)
            if not len(dead_R):
                continue
            restart(model, trainer.optimizers[0], bank, dead_R, source_R, generator)
            num_revived += len(dead_R)
            if trainer.is_global_zero:
                pairs = dict(zip(dead_R.tolist(), source_R.tolist(), strict=True))
                record = {"phase": logger.phase, "step": step, "tokens": logger.tokens_at(step)}
                self.revivals.append({**record, "bank": bank, "revived": pairs})
                print(
                    f"phase {logger.phase}, step {step}: {len(dead_R)} {kind.row_name}s of bank "
                    f"{bank} that no layer picked since the last revival restarted from live ones",
                    flush=True,
                )
        logger.log_metrics({"memory/revived": num_revived}, step)


def draw_sources(
    picks_C: Tensor, num_always: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rows that were not picked, ascending, and for each one that was, drawn in
    proportion to its picks: (R,) both; empty if nothing was picked at all."""
    dead_C = picks_C == 0
    dead_C[:num_always] = False
    dead_R = dead_C.nonzero()[:, 0]
    if not len(dead_R) or not picks_C.any():
        return dead_R[:0], dead_R[:0]
    weights = picks_C.double()  # those that are always read are never picked
    return dead_R, torch.multinomial(weights, len(dead_R), replacement=True, generator=generator)


@torch.no_grad()
def restart(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    bank: int,
    dead_R: Tensor,
    source_R: Tensor,
    generator: torch.Generator,
) -> None:
    """Make rows ``dead_R`` of ``bank`` noisy copies of ``source_R``, in the bank and in its
    routers; a collective call under sharding.

    A router's bias entries are copied exactly: a single number has no standard deviation.
    """

    def noisy(rows: Tensor) -> Tensor:
        std = rows.flatten(1).std(1, correction=0).view(-1, *[1] * (rows.ndim - 1))
        # drawn on the CPU, so that every rank and device draws the same
        noise = torch.randn(rows.shape, generator=generator).to(rows.device)
        return rows + NOISE * std * noise

    readers = [r for layer, r in routers(model).items() if model.bank_of_layer[layer] == bank]
    modules = [model.banks[bank], *(router.linear for router in readers)]
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        rows = _take_rows(parameter, source_R)
        _set_rows(parameter, dead_R, noisy(rows) if rows.ndim > 1 else rows)
        moments = optimizer.state.get(parameter, {})  # none before the first update
        for name, moment in moments.items():
            if name != "step" or moment.ndim:  # a lazy bank counts steps row by row
                _set_rows(moment, dead_R, 0.0)
    for router in readers:
        if router.selection_bias is not None:
            router.selection_bias[dead_R] = router.selection_bias[source_R]


def _take_rows(tensor: Tensor, row_R: Tensor) -> Tensor:
    """Rows of a tensor that may be sharded by rows; on every rank."""
    if not isinstance(tensor, DTensor):
        return tensor[row_R]
    row_U, place_R = row_R.to(tensor.device).unique(return_inverse=True)
    return fetch_rows(tensor, row_U)[place_R]


def _set_rows(tensor: Tensor, row_R: Tensor, value: Tensor | float) -> None:
    """``tensor[row_R] = value``, on every rank in the rows that it owns."""
    owned = owned_rows(tensor)
    here_R = (row_R >= owned.start) & (row_R < owned.stop)
    if isinstance(value, Tensor):
        value = value[here_R]
    own_rows(tensor)[row_R[here_R] - owned.start] = value
