"""Tokens of a study's sources outside the training order: their caches, and windows to score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.cache import TokenCache, build_cache
from moc.data.order import BLOCK, quotas
from moc.data.source import Split
from moc.data.tokenizer import Tokenizer
from moc.errors import ConfigError
from moc.store.rundir import TRAINED


class Amount(NamedTuple):
    """How much of a source is tokenised: whole documents, until there are as many of both."""

    tokens: int
    documents: int = 0


def validation_windows(
    study: StudyConfig,
    source_name: str,
    tokenizer: Tokenizer,
    context_length: int,
    max_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The start of the source's validation split as n consecutive windows, and the bytes of the
    tokens whose loss counts (of a chat: the assistant's).

    Returns:
        tokens (n, L + 1) int64, the last window padded on the right with the end-of-text token;
        loss mask (n, L) bool, False at padding; number of bytes.
    """
    cache = source_cache(study, source_name, "validation", tokenizer, Amount(max_tokens))
    return _windows(cache, tokenizer, context_length, max_tokens)


def comparable_texts(
    study: StudyConfig,
    source_name: str,
    tokenizer: Tokenizer,
    context_length: int,
    max_tokens: int,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and loss mask, as of ``validation_windows``, of what models are compared on by loss.

    That is the validation text and, of a source of facts, also the start of what is trained, under
    ``<source>-trained``: its validation text says the facts in sentences that training never uses,
    so that most of its loss is wording.
    """
    where = (tokenizer, context_length, max_tokens)
    found = {source_name: validation_windows(study, source_name, *where)[:2]}
    phases = [p for phases in _phases_of_arms(study) for p in phases.values()]
    readers = [phase for phase in phases if source_name in phase.mixture]
    if study.data[source_name].kind == "facts" and readers:
        amount = needed(study, readers[0], source_name)
        cache = source_cache(study, source_name, "train", tokenizer, amount)
        found[f"{source_name}{TRAINED}"] = _windows(cache, *where)[:2]
    return found


def training_streams(study: StudyConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Fingerprint of the tokens of every source that an arm trains on, tokenised now where they are
    not.

    Raises:
        ConfigError: naming the source, if one cannot be read.
    """
    readers = {
        source: phase
        for phases in _phases_of_arms(study)[1:]
        for phase in phases.values()
        for source in phase.mixture
    }
    return {
        source: source_cache(
            study, source, "train", tokenizer, needed(study, phase, source)
        ).fingerprint
        for source, phase in readers.items()
    }


def validation_streams(
    study: StudyConfig, sources: Sequence[str], tokenizer: Tokenizer, max_tokens: int
) -> dict[str, str]:
    """Fingerprint of the tokens of every source's validation text, as ``training_streams``."""
    return {
        source: source_cache(study, source, "validation", tokenizer, Amount(max_tokens)).fingerprint
        for source in sources
    }


def source_cache(
    study: StudyConfig, name: str, split: Split, tokenizer: Tokenizer, amount: Amount
) -> TokenCache:
    """``build_cache`` of a source of the study.

    Raises:
        ConfigError: naming the source, if it cannot be read.
    """
    try:
        return build_cache(study.data[name], split, tokenizer, Path(study.cache_dir), *amount)
    except ConfigError as error:
        raise ConfigError(f"data.{name}: {error}") from error


def needed(study: StudyConfig, phase: PhaseConfig, name: str) -> Amount:
    """The most of a source that any arm reads over all its phases.

    The same for the whole study, so that all arms and phases share one cache, and a phase that
    goes on in the data order finds the stream as the phase before left it.
    """
    arms = [*_phases_of_arms(study), {"": phase}]
    amounts = [[_amount(p, name) for p in phases.values()] for phases in arms]
    return Amount(
        max(sum(amount.tokens for amount in of_arm) for of_arm in amounts),
        max(sum(amount.documents for amount in of_arm) for of_arm in amounts),
    )


def _phases_of_arms(study: StudyConfig) -> list[dict[str, PhaseConfig]]:
    return [study.phases, *(arm.phases for arm in study.arms.values())]


def _amount(phase: PhaseConfig, name: str) -> Amount:
    if name not in phase.mixture:
        return Amount(0)
    share = quotas(tuple(phase.mixture.values()))[list(phase.mixture).index(name)]
    num_samples = phase.num_steps() * phase.tokens_per_step // phase.context_length
    num_samples = -(-num_samples // BLOCK) * share
    if phase.packing == "documents":
        return Amount(0, num_samples)
    return Amount(num_samples * phase.context_length + 1)


def _windows(
    cache: TokenCache, tokenizer: Tokenizer, context_length: int, max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The start of ``cache``, as ``validation_windows`` returns it."""
    stream = cache.read(0, max_tokens).astype(np.int64)
    counts = np.array(cache.read_mask(0, max_tokens))
    num_windows = max(1, -(-(len(stream) - 1) // context_length))
    num_padding = num_windows * context_length + 1 - len(stream)
    num_bytes = int(tokenizer.token_bytes[stream[1:][counts[1:]]].sum())
    stream = np.pad(stream, (0, num_padding), constant_values=tokenizer.eos_id)
    counts = np.pad(counts, (0, num_padding))
    starts = np.arange(num_windows)[:, None] * context_length
    tokens = torch.from_numpy(stream[starts + np.arange(context_length + 1)])
    loss_mask = torch.from_numpy(counts[starts + np.arange(1, context_length + 1)])
    return tokens, loss_mask, num_bytes
