"""Whole words: a value is one token, and nothing is lost of what is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.document import TURN_START, document_text
from moc.data.source import documents
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.data.words import UNKNOWN, word_tokenizer
from moc.errors import ConfigError

TEXTS = [
    "The cat sat, the cat slept.\nThe dog (a big one)  barked!",
    "cat cat cat 12 x1 don't 3.5 é 日本",
    " leading\ttabs\n\nand  spaces ",
]


def built(texts: list[str] = TEXTS, always: tuple[str, ...] = (), size: int = 100) -> Tokenizer:
    return Tokenizer(word_tokenizer(texts, always, size), "<|endoftext|>")


def cut(text: str) -> list[str]:
    """By hand: a word or marks with one space before it, else one character of white space."""
    found, place = [], 0
    while place < len(text):
        for form in (r" ?\w+", r" ?[^\w\s]+", r"\s"):
            if match := re.compile(form).match(text, place):
                found.append(match[0])
                place = match.end()
                break
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_cut_as_by_hand_and_put_together_again(text: str) -> None:
    tokenizer = built()
    (ids,) = tokenizer.encode_texts([text])
    assert [tokenizer.decode([i]) for i in ids] == cut(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_the_most_frequent_words_are_known_and_others_are_one_unknown_token() -> None:
    tokenizer = built(size=4 + 2)
    ids = tokenizer.encode_texts(["The cat cat flew"])[0]
    assert [tokenizer.decode([i]) for i in ids] == [UNKNOWN, " cat", " cat", UNKNOWN]
    assert ids[0] == ids[3] == tokenizer.unknown_id and tokenizer.token_bytes[ids[0]] == 0


def test_words_that_must_be_known_come_first() -> None:
    tokenizer = built(always=(" rare", "odd"), size=4 + 3)
    assert tokenizer.encode_texts(["odd rare cat cat"])[0] == [5, 4, 6, 6]
    with pytest.raises(ConfigError, match="must be at least 6, every word"):
        built(always=(" rare", "odd"), size=5)


def test_control_tokens_are_such_in_prompts_and_text_in_documents() -> None:
    tokenizer = built()
    assert len(tokenizer.encode(TURN_START)) == 1
    assert tokenizer.encode(TURN_START) != tokenizer.encode_texts([TURN_START])[0]


def test_pieces_say_which_characters_each_token_stands_for() -> None:
    ((ids, places),) = built().encode_pieces(["The cat sat"])
    assert places == [(0, 3), (3, 7), (7, 11)] and len(ids) == 3


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    return StudyConfig(
        name="study",
        cache_dir=str(tmp_path),
        tokenizer=TokenizerConfig(kind="words", vocab_size=500),
        data={
            "records": SourceConfig(kind="records", num_records=5, num_exposures=2),
            "skills": SourceConfig(kind="skills", num_examples=50),
        },
        phases={"one": PhaseConfig(mixture={"records": 1.0, "skills": 1.0})},
    )


def test_a_study_of_records_knows_all_their_words(study: StudyConfig) -> None:
    """Also of values that these few records do not have."""
    tokenizer = build_tokenizer(study)
    for document in documents(study.data["records"], "train"):
        text = document_text(document)
        (ids,) = tokenizer.encode_texts([text])
        assert len(ids) == len(text.split()) and tokenizer.unknown_id not in ids
    assert tokenizer.encode_texts([" zozo"])[0] == [tokenizer.unknown_id]
    assert tokenizer.encode_texts([" bada"])[0] != [tokenizer.unknown_id]  # value 5 of 256
    assert tokenizer.vocab_size <= 500


def test_saved_and_loaded_it_is_the_same_for_us_and_for_transformers(
    study: StudyConfig, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(study)
    tokenizer.save(tmp_path / "saved")
    text = document_text(next(iter(documents(study.data["records"], "train"))))
    ids = tokenizer.encode_texts([text])[0]
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.unknown_id == tokenizer.unknown_id
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(text)["input_ids"] == ids and theirs.decode(ids) == text


def test_too_few_words_end_in_one_line(study: StudyConfig) -> None:
    study.tokenizer.vocab_size = 300
    with pytest.raises(ConfigError, match="must be at least 393"):
        build_tokenizer(study)
