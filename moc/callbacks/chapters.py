"""Which chapters each memory layer reads, and how evenly.

C chapters, S shared; loads are over the C - S chapters that the router can pick.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.functional import kl_divergence

from moc.journal import Journal
from moc.train.distributed import all_sum, world_size
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

WINDOW_STEPS = 50  # dead chapters are those unread over the tokens of this many optimizer steps
MASS_SEQUENCES = 4  # how many sequences the attention mass is measured on


class ChapterUtilisation(L.Callback):
    """Load of every chapter over the last ``WINDOW_STEPS`` optimizer steps, per memory layer.

    Counts come from ``training_step``'s result: once per step, over all micro-batches and ranks,
    whether or not activations are recomputed. So do the router's losses, which are those of the
    recorded step alone. Means over layers go into the run's journal, one line per layer with all
    counts into ``chapters``.
    """

    def __init__(self, chapters: Journal) -> None:
        self.chapters = chapters
        self.window: deque[Tensor] = deque(maxlen=WINDOW_STEPS)  # (layers, C) per step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if outputs["picks"] is None:
            return
        self.window.append(outputs["picks"])
        step = pl_module.step
        if not trainer.logger.due(step):
            return
        memory = pl_module.model.config.memory
        assert memory is not None
        masses = _shared_masses(pl_module, batch["tokens"][0, :MASS_SEQUENCES, :-1])
        if trainer.global_rank:
            return
        per_layer = []
        load_LC = torch.stack(list(self.window)).sum(0).cpu()
        layers = pl_module.model.config.memory_layers()
        balance, z = outputs["balance_loss"].tolist(), outputs["z_loss"].tolist()
        for i, (layer, load_C, mass) in enumerate(zip(layers, load_LC, masses, strict=True)):
            statistics = {**load_statistics(load_C[memory.num_shared :]), "shared_mass": mass}
            losses = {"balance_loss": balance[i], "z_loss": z[i]}
            per_layer.append(statistics)
            self.chapters.append(
                {
                    "phase": trainer.logger.phase,
                    "step": step,
                    "tokens": trainer.logger.tokens_at(step),
                    "layer": layer,
                    "window_tokens": len(self.window) * trainer.logger.tokens_per_step,
                    "num_shared": memory.num_shared,
                    "load": load_C.tolist(),
                    **statistics,
                    **losses,
                }
            )
        means = {
            f"router/{key}": sum(row[key] for row in per_layer) / len(per_layer)
            for key in per_layer[0]
        }
        trainer.logger.log_metrics(means, step)


def load_statistics(load_C: Tensor) -> dict[str, float]:
    """How evenly picks fall on chapters.

    ``load_max_over_mean``: 1 is even; ``entropy``: over that of uniform use, 1 is even;
    ``dead_share``: chapters never picked; ``kl_to_uniform``: in nats, 0 is even.
    """
    count = load_C.numel()
    share_C = load_C.double() / load_C.sum().clamp(min=1)
    kl = float(kl_divergence(share_C[None], torch.full_like(share_C, 1 / count)[None]))
    return {
        "load_max_over_mean": float(share_C.max() * count),
        "entropy": 1 - kl / math.log(count) if count > 1 else 1.0,
        "dead_share": float((load_C == 0).double().mean()),
        "kl_to_uniform": kl,
    }


def _shared_masses(pl_module: StudyModule, tokens_BL: Tensor) -> list[float]:
    """Share of attention on shared chapters, per memory layer: the mean over all ranks' tokens."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        routing = pl_module.model(tokens_BL, measure_mass=True).routing
    masses = torch.stack([layer.shared_mass for layer in routing if layer.shared_mass is not None])
    return (all_sum(masses) / world_size()).tolist()
