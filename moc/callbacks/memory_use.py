"""Which rows each memory layer reads, how evenly, and an alarm when it is only a few of them.

R rows (chapters, values, ...); loads are over those that can be picked.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.functional import kl_divergence

from moc.store.journal import Journal
from moc.train.distributed import all_sum, world_size
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

WINDOW_STEPS = 50  # dead rows are those unread over the tokens of this many optimizer steps
MEASURED_SEQUENCES = 4  # on so many it is measured how flat a read is
# A layer has collapsed below this entropy (over that of uniform use) or above this share of dead
# rows, once even picks would have been so many of each: chance leaves none unread.
COLLAPSED_ENTROPY, COLLAPSED_DEAD_SHARE, MIN_EVEN_PICKS = 0.5, 0.5, 10


FULL_LOAD_ROWS = 8192  # of a larger bank only a phase's last record lists the load of every row


class MemoryUse(L.Callback):
    """Load of every row (of chapters: chapter utilisation) over the last ``WINDOW_STEPS`` steps.

    Counts come from ``training_step``'s result: once per step, over all micro-batches and ranks,
    whether or not activations are recomputed. Coverage and the router's losses are those of the
    recorded step alone. Every layer's figures and their means go into the run's journal, all counts
    into ``use``, one line per layer. A layer that has collapsed is reported in one printed
    line, and again only once it has recovered (or the run was resumed). The window is saved with
    checkpoints.
    """

    def __init__(self, use: Journal) -> None:
        self.use = use
        self.window: deque[Tensor] = deque(maxlen=WINDOW_STEPS)  # (layers, R) per step
        self.collapsed: set[int] = set()  # layers

    def state_dict(self) -> dict[str, Any]:
        counts = [use_LR.int().cpu() for use_LR in self.window]
        return {"window": torch.stack(counts)} if counts else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.window.extend(state_dict["window"].long())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # what was restored is on the CPU
        self.window = deque((p.to(pl_module.device) for p in self.window), maxlen=WINDOW_STEPS)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if outputs["use"] is None:
            return
        self.window.append(outputs["use"])
        logger, step = trainer.logger, pl_module.step
        if not logger.due(step):
            return
        kind = pl_module.model.kind
        assert kind is not None
        health = _health(pl_module, batch["tokens"][0, :MEASURED_SEQUENCES, :-1])
        if trainer.global_rank:
            return
        per_layer = []
        load_LR = torch.stack(list(self.window)).sum(0).cpu()
        last_LR = outputs["use"].cpu()
        layers = pl_module.model.config.memory_layers()
        lists_load = kind.num_rows <= FULL_LOAD_ROWS or step == logger.num_steps
        where = f"phase {logger.phase}, step {step}"
        for i, layer in enumerate(layers):
            picked_R = load_LR[i, kind.num_always :]
            statistics = load_statistics(picked_R)
            self._watch(layer, picked_R, statistics, where, kind.row_name)
            statistics["coverage"] = float((last_LR[i, kind.num_always :] > 0).double().mean())
            statistics |= health[i]
            per_layer.append(statistics)
            self.use.append(
                {
                    "phase": logger.phase,
                    "step": step,
                    "tokens": logger.tokens_at(step),
                    "layer": layer,
                    "window_tokens": len(self.window) * logger.tokens_per_step,
                    "coverage_tokens": logger.tokens_per_step,
                    "num_always": kind.num_always,
                    "load": load_LR[i].tolist() if lists_load else None,
                    **statistics,
                    **{
                        name: float(outputs[name][i])
                        for name in ("balance_loss", "z_loss")
                        if outputs[name] is not None
                    },
                }
            )
        means = {
            f"memory/{key}": sum(row[key] for row in per_layer) / len(per_layer)
            for key in per_layer[0]
        }
        by_layer = {
            f"memory/layer_{layer}/{key}": value
            for layer, row in zip(layers, per_layer, strict=True)
            for key, value in row.items()
        }
        logger.log_metrics(
            {**means, **by_layer, "memory/collapsed_layers": len(self.collapsed)}, step
        )

    def _watch(
        self, layer: int, load_R: Tensor, statistics: dict[str, float], where: str, row_name: str
    ) -> None:
        """Print a line when ``layer`` has collapsed since it was last looked at."""
        if not has_collapsed(load_R, statistics):
            self.collapsed.discard(layer)
        elif layer not in self.collapsed:
            self.collapsed.add(layer)
            print(
                f"memory collapsed: {where}, layer {layer}: entropy {statistics['entropy']:.2f} of "
                f"even use, {statistics['dead_share']:.0%} of the {row_name}s never picked in "
                f"the last {len(self.window)} steps, the busiest "
                f"{statistics['load_max_over_mean']:.1f} times as often as the mean; of "
                "chapters, raise router.balance_coefficient or router.bias_rate, or set the "
                "phase's revive_every_steps; of product keys, set query_norm",
                flush=True,
            )


def load_statistics(load_R: Tensor) -> dict[str, float]:
    """How evenly picks fall on rows.

    ``load_max_over_mean``: 1 is even; ``entropy``: over that of uniform use, 1 is even;
    ``effective_rows``: exp of the entropy in nats; ``dead_share``: rows never picked;
    ``kl_to_uniform``: in nats, 0 is even.
    """
    count = load_R.numel()
    share_R = load_R.double() / load_R.sum().clamp(min=1)
    kl = float(kl_divergence(share_R[None], torch.full_like(share_R, 1 / count)[None]))
    return {
        "load_max_over_mean": float(share_R.max() * count),
        "entropy": 1 - kl / math.log(count) if count > 1 else 1.0,
        "effective_rows": count * math.exp(-kl),
        "dead_share": float((load_R == 0).double().mean()),
        "kl_to_uniform": kl,
    }


def has_collapsed(load_R: Tensor, statistics: dict[str, float]) -> bool:
    """Whether a layer with these picks and their ``load_statistics`` uses too few rows."""
    if float(load_R.sum()) < MIN_EVEN_PICKS * load_R.numel():
        return False
    uneven = statistics["entropy"] < COLLAPSED_ENTROPY
    return uneven or statistics["dead_share"] > COLLAPSED_DEAD_SHARE


def _health(pl_module: StudyModule, tokens_BL: Tensor) -> list[dict[str, float]]:
    """``Address.health`` of each memory layer: the mean over all ranks' tokens."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        addresses = pl_module.model(tokens_BL, measure=True).addresses
    return [
        {name: float(all_sum(x)) / world_size() for name, x in sorted(address.health.items())}
        for address in addresses
    ]
