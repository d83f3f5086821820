"""A document a row: every row against its document, and every document once per pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.cache import TokenCache
from moc.data.document import document_text
from moc.data.module import StepDataset, prepare
from moc.data.source import documents
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.data.windows import Amount, needed

RECORDS = SourceConfig(kind="records", num_records=10, num_exposures=3, key_words=2)
LENGTH = 13  # a record of two key words, five attributes and values, and the end: 13 tokens


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return StudyConfig(
        name="study",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tokenizer=TokenizerConfig(kind="words", vocab_size=500),
        data={"records": RECORDS, "skills": SourceConfig(kind="skills", num_examples=60)},
        phases={"one": phase(), "two": phase(mixture={"skills": 1.0})},
    )


def phase(**settings: object) -> PhaseConfig:
    defaults = {
        "tokens": 6 * 10 * LENGTH,
        "tokens_per_step": 10 * LENGTH,
        "context_length": LENGTH,
        "mixture": {"records": 1.0},
        "packing": "documents",
    }
    return PhaseConfig(**(defaults | settings))


@pytest.fixture(scope="module")
def tokenizer(study: StudyConfig) -> Tokenizer:
    return build_tokenizer(study)


def dataset(study: StudyConfig, phase: PhaseConfig, tokenizer: Tokenizer) -> StepDataset:
    caches = prepare(study, phase, tokenizer)
    return StepDataset(phase, caches, seed=0, micro_batch=5)


def rows_of(found: StepDataset, num_steps: int) -> list[tuple[list[int], list[bool], list[bool]]]:
    """Tokens, which predictions count, and which inputs are no padding, of every row."""
    rows = []
    for step in range(num_steps):
        batch = found[step]
        parts = (batch["tokens"], batch["loss_mask"], batch["real"])
        rows += list(zip(*(x.flatten(0, 1).tolist() for x in parts), strict=True))
    return rows


def expected(
    ids: list[int], counts: list[bool], length: int, eos: int
) -> tuple[list[int], list[bool], list[bool]]:
    """By hand: of a document with its end-of-text token."""
    held = ids[: length + 1]
    padding = length + 1 - len(held)
    mask = counts[1 : length + 1]
    return (
        held + [eos] * padding,
        mask + [False] * (length - len(mask)),
        [True] * len(mask) + [False] * (length - len(mask)),
    )


@pytest.mark.parametrize("source", ["records", "skills"])
@pytest.mark.parametrize("loss_on", ["all", "assistant"])
@pytest.mark.parametrize("length", [6, 13, 40])
def test_every_row_is_one_document_cut_or_padded(
    study: StudyConfig, tokenizer: Tokenizer, source: str, loss_on: str, length: int
) -> None:
    chosen = phase(
        tokens=6 * 10 * length,
        tokens_per_step=10 * length,
        context_length=length,
        mixture={source: 1.0},
        loss_on=loss_on,
    )
    rows = set()
    for document in documents(study.data[source], "train"):
        ids: list[int] = []
        counts: list[bool] = []
        for piece in document:
            encode = tokenizer.encode if piece.control else lambda t: tokenizer.encode_texts([t])[0]
            here = encode(piece.text)
            ids += here
            counts += [piece.counts] * len(here)
        ids.append(tokenizer.eos_id)
        counts.append(document[-1].counts)
        counts = counts if loss_on == "assistant" else [True] * len(ids)
        row = expected(ids, counts, length, tokenizer.eos_id)
        rows.add(tuple(tuple(part) for part in row))
    found = rows_of(dataset(study, chosen, tokenizer), 6)
    assert {tuple(tuple(part) for part in row) for row in found} == rows


def test_every_document_comes_once_a_pass(study: StudyConfig, tokenizer: Tokenizer) -> None:
    """Six steps of ten rows are two passes over three exposures of ten records."""
    found = [tuple(tokens) for tokens, _, _ in rows_of(dataset(study, phase(), tokenizer), 6)]
    for half in (found[:30], found[30:]):
        assert len(set(half)) == 30  # every exposure has an order of its own
        keys = Counter(tokens[:2] for tokens in half)
        assert set(keys.values()) == {3} and len(keys) == 10
    assert found[:30] != found[30:]


def test_two_sources_keep_their_shares(study: StudyConfig, tokenizer: Tokenizer) -> None:
    mixed = phase(mixture={"records": 3.0, "skills": 1.0}, tokens=100 * 10 * LENGTH)
    found = rows_of(dataset(study, mixed, tokenizer), 100)
    keys = {tuple(tokenizer.encode_texts([document_text(d)])[0][:2]) for d in
            documents(RECORDS, "train")}  # fmt: skip
    assert sum(tuple(tokens[:2]) in keys for tokens, _, _ in found) == 750


def test_as_many_documents_are_tokenised_as_are_read(study: StudyConfig) -> None:
    assert needed(study, study.phases["one"], "records") == Amount(0, 1000)  # a whole block
    packed = replace(study.phases["one"], packing="packed")
    both = replace(study, phases={"one": study.phases["one"], "two": packed})
    assert needed(both, packed, "records") == Amount(1000 * LENGTH + 1, 1000)


def test_an_end_of_text_in_the_middle_of_a_row_is_nobodys(
    study: StudyConfig, tokenizer: Tokenizer
) -> None:
    """What is not real is not pooled, and counts for nothing."""
    for tokens, counted, real in rows_of(
        dataset(study, phase(mixture={"skills": 1.0}), tokenizer), 6
    ):
        end = tokens.index(tokenizer.eos_id) if tokenizer.eos_id in tokens else LENGTH
        assert real == [place < end for place in range(LENGTH)]
        assert not any(counted[end:])


def test_batches_are_the_same_wherever_they_are_made(
    study: StudyConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    elsewhere = replace(study, cache_dir=str(tmp_path))
    ours, theirs = (dataset(s, phase(), tokenizer)[3] for s in (study, elsewhere))
    assert torch.equal(ours["tokens"], theirs["tokens"])


def test_ends_of_documents_by_hand(study: StudyConfig, tokenizer: Tokenizer) -> None:
    cache: TokenCache = prepare(study, study.phases["two"], tokenizer)["skills"]
    ends = np.flatnonzero(cache.tokens == tokenizer.eos_id) + 1
    assert cache.ends.tolist() == ends.tolist() and cache.num_documents == 60
    assert cache.document(0) == (0, ends[0]) and cache.document(59) == (ends[58], ends[59])
