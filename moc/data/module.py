"""A phase's training data for Lightning: exactly one batch per optimizer step."""

from __future__ import annotations

import signal
from typing import NotRequired, TypedDict

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.cache import TokenCache
from moc.data.hashing import stable_hash
from moc.data.order import permute, sample_source
from moc.data.tokenizer import Tokenizer
from moc.data.windows import needed, source_cache
from moc.errors import ConfigError


class StepBatch(TypedDict):
    """What one rank needs for one optimizer step: A micro-batches of B sequences."""

    tokens: torch.Tensor  # (A, B, L + 1) int64
    loss_mask: torch.Tensor  # (A, B, L) bool: predicting tokens[..., i + 1] counts
    real: NotRequired[torch.Tensor]  # (A, B, L) bool, False at padding; where a row may have some
    sample: int  # position of the step's first sample in the global order


class StepDataset(Dataset):
    """Item s is the batch of optimizer step s on one rank; a pure function of s.

    Step s holds the samples ``start_sample + s * N`` up to N more, N = tokens_per_step / L;
    micro-batch a on rank r of R holds B of them, from ``(a * R + r) * B`` on.

    Raises:
        ValueError: if N is no multiple of R * B.
        ConfigError: if a source has fewer tokens than one sequence.
    """

    def __init__(
        self,
        phase: PhaseConfig,
        caches: dict[str, TokenCache],
        *,
        seed: int,
        start_sample: int = 0,
        micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_samples = phase.tokens_per_step // phase.context_length
        if self.num_samples % (micro_batch * world_size):
            raise ValueError(
                f"a step of {self.num_samples} sequences (tokens_per_step {phase.tokens_per_step} "
                f"/ context_length {phase.context_length}) does not divide into micro-batches of "
                f"{micro_batch} on {world_size} devices; change tokens_per_step or micro_batch"
            )
        for name in phase.mixture if phase.packing == "packed" else ():
            if caches[name].num_tokens <= phase.context_length:
                raise ConfigError(
                    f"data.{name} has only {caches[name].num_tokens} tokens, fewer than one "
                    f"sequence; give it more text or lower context_length {phase.context_length}"
                )
        self.phase = phase
        self.caches = caches
        self.seed = seed
        self.start_sample = start_sample
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> StepBatch:
        first = self.start_sample + step * self.num_samples
        stride = self.micro_batch * self.world_size
        starts = range(self.rank * self.micro_batch, self.num_samples, stride)
        positions = [first + start + i for start in starts for i in range(self.micro_batch)]
        length = self.phase.context_length
        tokens = np.empty((len(positions), length + 1), dtype=np.int64)
        loss_mask = np.ones((len(positions), length), dtype=np.bool_)
        real = np.ones_like(loss_mask)
        for row, position in enumerate(positions):
            cache, start, stop = self._place(position)
            held = stop - start  # the rest of the row, if any, is padding
            tokens[row, :held] = cache.read(start, stop)
            tokens[row, held:] = tokens[row, held - 1]  # the end of text, of what was not cut
            loss_mask[row, held - 1 :] = False
            real[row, held - 1 :] = False
            if self.phase.loss_on == "assistant":
                loss_mask[row, : held - 1] = cache.read_mask(start + 1, stop)
        shape = (len(starts), self.micro_batch, -1)
        batch: StepBatch = {
            "tokens": torch.from_numpy(tokens.reshape(shape)),
            "loss_mask": torch.from_numpy(loss_mask.reshape(shape)),
            "sample": first,
        }
        if self.phase.packing == "documents":
            batch["real"] = torch.from_numpy(real.reshape(shape))
        return batch

    def _place(self, position: int) -> tuple[TokenCache, int, int]:
        """Where the sample at ``position`` of the order is: a source's cache, and the first token
        and the one after the last there.

        A source's stream is cut into windows that overlap by one token, so that every token but
        the first is predicted once per pass, or into its documents; each pass goes through them in
        an order of its own.
        """
        length = self.phase.context_length
        weights = list(self.phase.mixture.values())
        source, index = sample_source(position, weights, self.seed)
        name = list(self.phase.mixture)[source]
        cache = self.caches[name]
        packed = self.phase.packing == "packed"
        count = (cache.num_tokens - 1) // length if packed else cache.num_documents
        turn, place = divmod(index, count)
        place = permute(place, count, stable_hash(self.seed, "windows", name, turn))
        if packed:
            return cache, place * length, (place + 1) * length + 1
        start, stop = cache.document(place)
        return cache, start, min(stop, start + length + 1)


class StudyDataModule(lightning.LightningDataModule):
    """The training data of one phase. Rank and number of ranks come from the trainer, if any."""

    def __init__(
        self,
        study: StudyConfig,
        phase: PhaseConfig,
        tokenizer: Tokenizer,
        *,
        seed: int,
        start_step: int = 0,
        start_sample: int = 0,
        micro_batch: int,
    ) -> None:
        super().__init__()
        self.study = study
        self.phase = phase
        self.tokenizer = tokenizer
        self.seed = seed
        self.start_step = start_step
        self.start_sample = start_sample
        self.micro_batch = micro_batch
        self.caches: dict[str, TokenCache] = {}

    def setup(self, stage: str | None = None) -> None:
        self.caches = prepare(self.study, self.phase, self.tokenizer)

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """The batches of the steps from ``start_step`` to the phase's last."""
        if not self.caches:
            self.setup()
        dataset = StepDataset(
            self.phase,
            self.caches,
            seed=self.seed,
            start_sample=self.start_sample,
            micro_batch=self.micro_batch,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return DataLoader(
            dataset,
            sampler=range(self.start_step, self.phase.num_steps()),
            batch_size=None,
            num_workers=self.study.trainer.num_workers,
            worker_init_fn=_ignore_stop_signals,
            # only from pinned memory is the copy to a GPU under way while the last step still is
            pin_memory=torch.cuda.is_available() and self.study.trainer.accelerator != "cpu",
        )

    def fingerprints(self) -> dict[str, str]:
        """Of each source's tokens, by name."""
        if not self.caches:
            self.setup()
        return {name: cache.fingerprint for name, cache in self.caches.items()}


def _ignore_stop_signals(worker: int) -> None:
    """A scheduler signals every process, and this one still needs batches until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def prepare(study: StudyConfig, phase: PhaseConfig, tokenizer: Tokenizer) -> dict[str, TokenCache]:
    """The phase's caches by source, built where missing; several processes may call it at once.

    Raises:
        ConfigError: naming the source, if one cannot be read.
    """
    return {
        name: source_cache(study, name, "train", tokenizer, needed(study, phase, name))
        for name in phase.mixture
    }
