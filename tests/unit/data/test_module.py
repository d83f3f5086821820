"""Batches: every token once per pass, the same order whatever the ranks, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig, TrainerConfig
from moc.data.module import StepDataset, StudyDataModule, prepare
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.data.windows import comparable_texts, validation_windows

LENGTH = 32


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    mixture = {"people": 3.0, "skills": 1.0}
    return StudyConfig(
        name="study",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tokenizer=TokenizerConfig(vocab_size=500, training_bytes=50_000),
        data={
            "people": SourceConfig(num_people=10, num_phrasings=4),
            "skills": SourceConfig(kind="skills", num_examples=100),
        },
        phases={
            "pretrain": PhaseConfig(
                tokens=8 * 512, tokens_per_step=512, context_length=LENGTH, mixture=mixture
            )
        },
    )


@pytest.fixture(scope="module")
def tokenizer(study: StudyConfig) -> Tokenizer:
    return build_tokenizer(study)


def batches(study: StudyConfig, tokenizer: Tokenizer, **options: object) -> list[dict]:
    phase = options.pop("phase", study.phases["pretrain"])
    rank, world_size = options.pop("rank", 0), options.pop("world_size", 1)
    settings = {"seed": 0, "micro_batch": 4} | options
    module = StudyDataModule(study, phase, tokenizer, **settings)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return list(module.train_dataloader())


def test_one_batch_per_optimizer_step(study: StudyConfig, tokenizer: Tokenizer) -> None:
    found = batches(study, tokenizer)
    assert len(found) == study.phases["pretrain"].num_steps() == 8
    assert [batch["sample"] for batch in found] == [16 * step for step in range(8)]
    for batch in found:
        assert batch["tokens"].shape == (4, 4, LENGTH + 1) and batch["tokens"].dtype == torch.int64
        assert batch["loss_mask"].shape == (4, 4, LENGTH) and batch["loss_mask"].all()


def test_order_does_not_depend_on_ranks_or_micro_batches(
    study: StudyConfig, tokenizer: Tokenizer
) -> None:
    def in_global_order(world_size: int, micro_batch: int) -> torch.Tensor:
        """(steps, N, L + 1), by the definition of the global order: micro-batch, rank, row."""
        ranks = [
            batches(study, tokenizer, rank=r, world_size=world_size, micro_batch=micro_batch)
            for r in range(world_size)
        ]
        steps = []
        for parts in zip(*ranks, strict=True):
            tokens = torch.stack([part["tokens"] for part in parts], dim=1)  # A, R, B, L + 1
            steps.append(tokens.reshape(16, LENGTH + 1))
        return torch.stack(steps)

    one = in_global_order(1, 4)
    for world_size, micro_batch in [(2, 2), (4, 1), (4, 4), (1, 16), (1, 1)]:
        assert torch.equal(in_global_order(world_size, micro_batch), one)


def test_resuming_gives_the_identical_tail(study: StudyConfig, tokenizer: Tokenizer) -> None:
    whole, tail = batches(study, tokenizer), batches(study, tokenizer, start_step=5)
    assert len(tail) == 3
    for expected, found in zip(whole[5:], tail, strict=True):
        assert torch.equal(expected["tokens"], found["tokens"])
        assert expected["sample"] == found["sample"]
    module = StudyDataModule(
        study, study.phases["pretrain"], tokenizer, seed=0, start_step=5, micro_batch=4
    )
    assert len(module.train_dataloader()) == 3


def test_going_on_in_the_data_order(study: StudyConfig, tokenizer: Tokenizer) -> None:
    whole, later = batches(study, tokenizer), batches(study, tokenizer, start_sample=3 * 16)
    assert all(
        torch.equal(expected["tokens"], found["tokens"])
        for expected, found in zip(whole[3:], later, strict=False)
    )


def test_worker_processes_change_nothing(study: StudyConfig, tokenizer: Tokenizer) -> None:
    with_workers = replace(study, trainer=TrainerConfig(num_workers=2))
    alone, helped = batches(study, tokenizer), batches(with_workers, tokenizer)
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(alone, helped, strict=True))


def test_seeds_differ(study: StudyConfig, tokenizer: Tokenizer) -> None:
    a, b = batches(study, tokenizer), batches(study, tokenizer, seed=1)
    assert not torch.equal(a[0]["tokens"], b[0]["tokens"])


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_a_pass_is_the_stream_cut_into_windows(
    study: StudyConfig, tokenizer: Tokenizer, loss_on: str
) -> None:
    """Oracle: the windows cut one after the other from the concatenated documents."""
    phase = replace(study.phases["pretrain"], mixture={"skills": 1.0}, loss_on=loss_on)
    caches = prepare(study, phase, tokenizer)
    tokens, mask = caches["skills"].tokens.tolist(), caches["skills"].mask.tolist()
    expected = []
    for i in range(0, len(tokens) - LENGTH, LENGTH):
        counts = mask[i + 1 : i + LENGTH + 1] if loss_on == "assistant" else [True] * LENGTH
        expected.append((tokens[i : i + LENGTH + 1], counts))
    dataset = StepDataset(phase, caches, seed=0, micro_batch=1)
    steps = [dataset[step] for step in range(-(-3 * len(expected) // 16))]
    tokens = torch.cat([step["tokens"].flatten(0, 1) for step in steps])
    loss_mask = torch.cat([step["loss_mask"].flatten(0, 1) for step in steps])
    windows = list(zip(tokens.tolist(), loss_mask.tolist(), strict=True))[: 3 * len(expected)]
    passes = [windows[i : i + len(expected)] for i in range(0, len(windows), len(expected))]
    assert len(passes) == 3 and all(sorted(part) == sorted(expected) for part in passes)
    assert passes[0] != passes[1] != passes[2]  # each pass in an order of its own


def test_the_cache_holds_what_a_phase_needs_without_repeats(tokenizer: Tokenizer, study) -> None:
    big = replace(study, data=study.data | {"people": SourceConfig(num_people=1000)})
    phase = replace(big.phases["pretrain"], tokens=100 * 512)
    cache = prepare(big, phase, tokenizer)["people"]
    needed = 100 * 512 * 3 // 4
    assert needed < cache.num_tokens < needed + 1000 * LENGTH


def test_an_impossible_division_names_the_remedy(study: StudyConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="micro-batches of 3 on 2 devices; change"):
        batches(study, tokenizer, micro_batch=3, world_size=2)


def test_fingerprints_follow_the_tokens(study: StudyConfig, tokenizer: Tokenizer) -> None:
    phase = study.phases["pretrain"]
    prints = StudyDataModule(study, phase, tokenizer, seed=0, micro_batch=4).fingerprints()
    assert set(prints) == {"people", "skills"} and len(set(prints.values())) == 2
    other = replace(study, data=study.data | {"people": SourceConfig(seed=1)})
    changed = StudyDataModule(other, phase, tokenizer, seed=0, micro_batch=4).fingerprints()
    assert changed["people"] != prints["people"] and changed["skills"] == prints["skills"]


@pytest.mark.parametrize(
    ("source", "max_tokens"), [("people", 500), ("skills", 100), ("skills", 20)]
)
def test_validation_windows_against_a_naive_loop(
    study: StudyConfig, tokenizer: Tokenizer, source: str, max_tokens: int
) -> None:
    tokens, mask, num_bytes = validation_windows(study, source, tokenizer, LENGTH, max_tokens)
    predicted, scored = [], []
    for row, row_mask in zip(tokens.tolist(), mask.tolist(), strict=True):
        for i in range(LENGTH):
            predicted.append(row[i + 1])
            scored.append(row_mask[i])
    padding = len(predicted) - (max_tokens - 1)
    assert 0 <= padding < LENGTH and not any(scored[len(scored) - padding :])
    text_bytes = [tokenizer.token_bytes[t] for t, s in zip(predicted, scored, strict=True) if s]
    assert num_bytes == np.sum(text_bytes) > 0
    if source == "people":
        assert sum(scored) == max_tokens - 1
        stream = [int(tokens[0, 0]), *predicted[: max_tokens - 1]]
        text = "".join(tokenizer.decode(stream).split("<|endoftext|>"))
        first_bytes = tokenizer.token_bytes[stream[0]]  # the first token is never predicted
        assert len(text.encode()) - first_bytes == num_bytes
    else:
        assert 0 < sum(scored) < max_tokens / 2


def test_facts_are_also_compared_on_text_that_is_trained(
    study: StudyConfig, tokenizer: Tokenizer
) -> None:
    texts = comparable_texts(study, "people", tokenizer, LENGTH, 200)
    assert list(texts) == ["people", "people-trained"]
    validation = validation_windows(study, "people", tokenizer, LENGTH, 200)[0]
    assert torch.equal(texts["people"][0], validation)
    tokens, mask = texts["people-trained"]
    read = prepare(study, study.phases["pretrain"], tokenizer)["people"].tokens
    assert [int(tokens[0, 0]), *tokens[:, 1:].flatten()[: 200 - 1].tolist()] == read[:200].tolist()
    assert mask.sum() == 200 - 1
    assert list(comparable_texts(study, "skills", tokenizer, LENGTH, 200)) == ["skills"]


def test_phases_and_arms_share_one_cache(tokenizer: Tokenizer, study: StudyConfig, tmp_path: Path):
    pretrain = study.phases["pretrain"]
    tune = replace(pretrain, tokens=2 * 512, context_length=64, mixture={"people": 1.0})
    both = replace(study, cache_dir=str(tmp_path), phases={"pretrain": pretrain, "tune": tune})
    first, second = (prepare(both, phase, tokenizer)["people"] for phase in (pretrain, tune))
    assert first.folder == second.folder
