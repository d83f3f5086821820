"""Which chapters each memory layer reads, how evenly, and an alarm when it is only a few of them.

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

from moc.store.journal import Journal
from moc.train.distributed import all_sum, world_size
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

WINDOW_STEPS = 50  # dead chapters are those unread over the tokens of this many optimizer steps
MASS_SEQUENCES = 4  # how many sequences the attention mass is measured on
# A layer has collapsed below this entropy (over that of uniform use) or above this share of dead
# chapters, once an even router would have picked each chapter so often: chance leaves none unread.
COLLAPSED_ENTROPY, COLLAPSED_DEAD_SHARE, MIN_EVEN_PICKS = 0.5, 0.5, 10


class ChapterUtilisation(L.Callback):
    """Load of every chapter over the last ``WINDOW_STEPS`` optimizer steps, per memory layer.

    Counts come from ``training_step``'s result: once per step, over all micro-batches and ranks,
    whether or not activations are recomputed. Coverage and the router's losses are those of the
    recorded step alone. Every layer's figures and their means go into the run's journal, all counts
    into ``chapters``, one line per layer. A layer that has collapsed is reported in one printed
    line, and again only once it has recovered (or the run was resumed). The window is saved with
    checkpoints.
    """

    def __init__(self, chapters: Journal) -> None:
        self.chapters = chapters
        self.window: deque[Tensor] = deque(maxlen=WINDOW_STEPS)  # (layers, C) per step
        self.collapsed: set[int] = set()  # layers

    def state_dict(self) -> dict[str, Any]:
        counts = [picks_LC.int().cpu() for picks_LC in self.window]
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
        if outputs["picks"] is None:
            return
        self.window.append(outputs["picks"])
        logger, step = trainer.logger, pl_module.step
        if not logger.due(step):
            return
        memory = pl_module.model.config.memory
        assert memory is not None
        masses = _shared_masses(pl_module, batch["tokens"][0, :MASS_SEQUENCES, :-1])
        if trainer.global_rank:
            return
        per_layer = []
        load_LC = torch.stack(list(self.window)).sum(0).cpu()
        last_LC = outputs["picks"].cpu()
        layers = pl_module.model.config.memory_layers()
        where = f"phase {logger.phase}, step {step}"
        for i, layer in enumerate(layers):
            routed_C = load_LC[i, memory.num_shared :]
            statistics = load_statistics(routed_C)
            self._watch(layer, routed_C, statistics, where)
            statistics["coverage"] = float((last_LC[i, memory.num_shared :] > 0).double().mean())
            statistics["shared_mass"] = masses[i]
            per_layer.append(statistics)
            self.chapters.append(
                {
                    "phase": logger.phase,
                    "step": step,
                    "tokens": logger.tokens_at(step),
                    "layer": layer,
                    "window_tokens": len(self.window) * logger.tokens_per_step,
                    "coverage_tokens": logger.tokens_per_step,
                    "num_shared": memory.num_shared,
                    "load": load_LC[i].tolist(),
                    **statistics,
                    "balance_loss": float(outputs["balance_loss"][i]),
                    "z_loss": float(outputs["z_loss"][i]),
                }
            )
        means = {
            f"router/{key}": sum(row[key] for row in per_layer) / len(per_layer)
            for key in per_layer[0]
        }
        by_layer = {
            f"router/layer_{layer}/{key}": value
            for layer, row in zip(layers, per_layer, strict=True)
            for key, value in row.items()
        }
        logger.log_metrics(
            {**means, **by_layer, "router/collapsed_layers": len(self.collapsed)}, step
        )

    def _watch(self, layer: int, load_C: Tensor, statistics: dict[str, float], where: str) -> None:
        """Print a line when ``layer`` has collapsed since it was last looked at."""
        if not has_collapsed(load_C, statistics):
            self.collapsed.discard(layer)
        elif layer not in self.collapsed:
            self.collapsed.add(layer)
            print(
                f"router collapsed: {where}, layer {layer}: entropy {statistics['entropy']:.2f} of "
                f"an even router's, {statistics['dead_share']:.0%} of the chapters never picked in "
                f"the last {len(self.window)} steps, the busiest "
                f"{statistics['load_max_over_mean']:.1f} times as often as the mean; raise "
                "router.balance_coefficient or router.bias_rate, or set the phase's "
                "revive_every_steps",
                flush=True,
            )


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


def has_collapsed(load_C: Tensor, statistics: dict[str, float]) -> bool:
    """Whether a layer with these picks and their ``load_statistics`` uses too few chapters."""
    if float(load_C.sum()) < MIN_EVEN_PICKS * load_C.numel():
        return False
    uneven = statistics["entropy"] < COLLAPSED_ENTROPY
    return uneven or statistics["dead_share"] > COLLAPSED_DEAD_SHARE


def _shared_masses(pl_module: StudyModule, tokens_BL: Tensor) -> list[float]:
    """Share of attention on shared chapters, per memory layer: the mean over all ranks' tokens."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        routing = pl_module.model(tokens_BL, measure_mass=True).routing
    masses = torch.stack([layer.shared_mass for layer in routing if layer.shared_mass is not None])
    return (all_sum(masses) / world_size()).tolist()
