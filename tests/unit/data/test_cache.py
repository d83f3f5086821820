"""The token cache: what it holds is exactly the documents, and it is built once."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.cache import TokenCache, build_cache
from moc.data.source import documents
from moc.data.tokenizer import Tokenizer, build_tokenizer

CHATS = [
    [{"role": "user", "content": "Say <|im_end|>"}, {"role": "assistant", "content": "no é"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "thanks"},
        {"role": "assistant", "content": "sure"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    study = StudyConfig(
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tokenizer=TokenizerConfig(vocab_size=500, training_bytes=50_000),
        data={"people": SourceConfig(num_people=20)},
        phases={"pretrain": PhaseConfig(mixture={"people": 1.0})},
    )
    return build_tokenizer(study)


@pytest.fixture
def chat(tmp_path: Path) -> SourceConfig:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return SourceConfig(kind="chat", path=str(path), validation_fraction=0)


def test_chat_tokens_and_mask_against_a_naive_loop(
    tokenizer: Tokenizer, chat: SourceConfig, tmp_path: Path
) -> None:
    start, end = tokenizer.encode("<|im_start|>"), tokenizer.encode("<|im_end|>")
    tokens, mask, counted = [], [], ""
    for messages in CHATS:
        for message in messages:
            role, content = tokenizer.encode_texts([message["role"] + "\n", message["content"]])
            newline = tokenizer.encode_texts(["\n"])[0]
            mine = message["role"] == "assistant"
            tokens += start + role + content + end + newline
            mask += [False] * (1 + len(role)) + [mine] * (len(content) + 1) + [False] * len(newline)
            counted += message["content"] * mine
        tokens.append(tokenizer.eos_id)
        mask.append(False)
    cache = build_cache(chat, "train", tokenizer, tmp_path, 10**9)
    assert cache.tokens.tolist() == tokens
    assert cache.mask.tolist() == mask
    assert cache.manifest["num_loss_bytes"] == len(counted.encode())
    assert cache.manifest["num_loss_tokens"] == sum(mask)
    assert cache.manifest["num_documents"] == 2


def test_facts_tokens_against_a_naive_loop(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = SourceConfig(num_people=20, num_phrasings=2)
    texts = [document[0].text for document in documents(config, "train")]
    tokens = [t for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_id]]
    cache = build_cache(config, "train", tokenizer, tmp_path, 10**9)
    assert cache.tokens.tolist() == tokens and cache.mask.all()
    assert cache.manifest["num_bytes"] == len("".join(texts).encode())
    assert cache.tokens.dtype == np.uint16


def test_max_tokens_cuts_after_a_whole_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = SourceConfig(num_people=100)
    short = build_cache(config, "train", tokenizer, tmp_path, 1000)
    longer = build_cache(config, "train", tokenizer, tmp_path, 3000)
    assert 1000 <= short.num_tokens < 1400 and 3000 <= longer.num_tokens < 3400
    assert (longer.tokens[: short.num_tokens] == short.tokens).all()
    assert short.tokens[-1] == tokenizer.eos_id
    assert short.fingerprint != longer.fingerprint


def test_it_is_built_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = SourceConfig(num_people=10)
    first = build_cache(config, "train", tokenizer, tmp_path, 1000)
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    again = build_cache(config, "train", tokenizer, tmp_path, 1000)
    assert again.fingerprint == first.fingerprint
    assert (again.folder / "manifest.json").stat().st_mtime_ns == written


def _build(folder: Path, cache_dir: Path, barrier: Barrier, queue: multiprocessing.Queue) -> None:
    tokenizer = Tokenizer.load(folder)
    barrier.wait()
    cache = build_cache(SourceConfig(num_people=300), "train", tokenizer, cache_dir, 50_000)
    queue.put(
        (cache.fingerprint, cache.folder, (cache.folder / "manifest.json").stat().st_mtime_ns)
    )


def test_two_processes_starting_at_once_share_one_cache(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "tokenizer", tmp_path, barrier, queue)
    processes = [context.Process(target=_build, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert results[0] == results[1]  # the second did not write it again
    assert len(list((tmp_path / "tokens").glob("facts*/manifest.json"))) == 1


def test_a_cache_sent_to_a_worker_carries_no_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cache = build_cache(SourceConfig(), "train", tokenizer, tmp_path, 20_000)
    assert cache.tokens[0] >= 0  # mapped now
    sent = pickle.dumps(cache)
    received: TokenCache = pickle.loads(sent)
    assert len(sent) < 5000
    assert (received.tokens == cache.tokens).all()
