"""A study that trains in a second, and a way to run one phase of it and watch every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from moc.callbacks.guards import StopOnNonFinite
from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.data.module import StudyDataModule
from moc.data.tokenizer import build_tokenizer
from moc.model.transformer import Transformer, build_model
from moc.store.journal import Journal
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

TINY_STUDY = """
name: tiny
seeds: [0]
runs_dir: {folder}/runs
cache_dir: {folder}/cache
model:
  vocab_size: 512
  num_layers: 2
  dim: 32
  num_heads: 2
  num_kv_heads: 1
  mlp_dim: 64
  memory:
    layers: all
    chapters:
      num_chapters: 9
      num_routed: 2
      chapter_tokens: 4
      router: {{segment_tokens: 16}}  # several segments in 32 and 64 tokens
tokenizer: {{vocab_size: 400, training_bytes: 20_000}}
data:
  people: {{kind: facts, num_people: 20, num_phrasings: 10}}
  skills: {{kind: skills, num_examples: 200}}
phases:
  facts:
    tokens: 2048  # 8 steps of 2 micro-batches
    tokens_per_step: 256
    context_length: 32
    micro_batch: 4
    mixture: {{people: 1.0}}
    schedule: {{kind: wsd, warmup_steps: 2, decay_fraction: 0.3}}
  skills:
    tokens: 1536  # 6 steps of 2 micro-batches
    tokens_per_step: 256
    context_length: 64
    micro_batch: 2
    mixture: {{skills: 3.0, people: 1.0}}
    loss_on: assistant
    schedule: {{kind: cosine}}
arms:
  moc: {{}}
  backbone: {{model: {{memory: null}}}}
evals:
  tasks: [facts_choice]
  num_items: 4
  context_length: 64
  validation_tokens: 512
trainer:
  accelerator: cpu
  checkpoint_every_steps: 3
  log_every_steps: 1
"""


def write_tiny_study(folder: Path) -> Path:
    """The tiny study's YAML in ``folder``, which also takes its runs and caches."""
    path = folder / "tiny.yaml"
    if not path.is_file():  # two ranks may be reading it
        path.write_text(TINY_STUDY.format(folder=folder))
    return path


def tiny_study(folder: Path, *overrides: str) -> StudyConfig:
    """The tiny study in ``folder`` with ``key=value`` overrides laid over it."""
    return load_study(write_tiny_study(folder), overrides)


class Recorder(L.Callback):
    """What every training step used and returned."""

    def __init__(self, *, weights: bool = False) -> None:
        self.keeps_weights = weights
        self.results: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []  # after each step

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        if self.keeps_weights:
            named = module_of(pl_module).model.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.results.append({key: _plain(value) for key, value in outputs.items()})
        self.batches.append(batch)
        if self.keeps_weights:
            self.weights.append(copy_weights(module_of(pl_module).model))

    def losses(self) -> list[float]:
        return [result["loss"] for result in self.results]


def train_phase(
    study: StudyConfig,
    folder: Path,
    *,
    phase: str = "facts",
    arm: str = "moc",
    model: Transformer | None = None,
    data: L.LightningDataModule | None = None,
    recorder: Recorder | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    start_step: int = 0,
    optimizer_state: dict[str, Any] | None = None,
) -> tuple[StudyModule, Recorder]:
    """One phase through the real module, data and trainer, without evaluations.

    ``micro_batch`` of the phase is per device; ``data`` replaces the study's own.
    """
    settings = study.arms[arm].phases[phase]
    recorder = recorder or Recorder()
    module = StudyModule(
        model or build_model(study.arms[arm].model, seed=0), settings, start_step=start_step
    )
    module.optimizer_state = optimizer_state
    if data is None:
        assert settings.micro_batch is not None
        data = StudyDataModule(
            study,
            settings,
            build_tokenizer(study),
            seed=0,
            start_step=start_step,
            micro_batch=settings.micro_batch,
        )
    logger = JournalLogger(
        Journal(folder / "metrics.jsonl"),
        phase=phase,
        tokens_before=0,
        tokens_per_step=settings.tokens_per_step,
        num_steps=settings.num_steps(),
        every=1,
    )
    every = (StopOnNonFinite(), *callbacks, recorder)
    fit(module, data, study.trainer, logger=logger, callbacks=every)  # type: ignore[arg-type]
    return module, recorder


def copy_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def module_of(module: L.LightningModule) -> StudyModule:
    assert isinstance(module, StudyModule)
    return module


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.ndim == 0 else value.tolist()
