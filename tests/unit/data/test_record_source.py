"""Records: what they demand is known to the bit, and nothing of one follows from another."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from moc.config.data import SourceConfig
from moc.data.document import document_text
from moc.data.known import bits_of, demand
from moc.data.records import ATTRIBUTES, KEY_WORDS, record, record_documents, value_word, vocabulary
from moc.data.source import documents, source_key
from moc.errors import ConfigError

CONFIG = SourceConfig(kind="records", seed=3, num_records=50, num_exposures=4, key_words=2)


def texts(config: SourceConfig, split: str = "train") -> list[str]:
    return [document_text(document) for document in documents(config, split)]


def key_of(text: str, config: SourceConfig = CONFIG) -> str:
    return " ".join(text.split()[: config.key_words])


def facts_of(text: str) -> tuple[str, ...]:
    """The key, then attributes and values, by attribute."""
    words = text.split()
    pairs = zip(words[2::2], words[3::2], strict=True)
    return (key_of(text), *(f"{name} {value}" for name, value in sorted(pairs)))


def test_keys_are_unique_and_all_of_them_can_be_used() -> None:
    everyone = replace(CONFIG, num_records=len(KEY_WORDS) ** 2)
    keys = {record(everyone, i).key for i in range(everyone.num_records)}
    assert len(keys) == 64**2 == everyone.num_records
    with pytest.raises(ConfigError, match="key_words 2 makes 4,096 keys"):
        next(iter(documents(replace(everyone, first_record=1), "train")))


def test_a_record_does_not_depend_on_how_many_there_are() -> None:
    many = replace(CONFIG, num_records=4000, num_exposures=1000)
    assert record(CONFIG, 7) == record(many, 7) != record(replace(CONFIG, seed=4), 7)


def test_further_records_are_others_with_the_same_attributes() -> None:
    further = replace(CONFIG, first_record=50)
    ours, theirs = ({key_of(text) for text in texts(config)} for config in (CONFIG, further))
    assert len(ours) == len(theirs) == 50 and not ours & theirs
    assert {t.split()[2] for t in texts(CONFIG)} == {t.split()[2] for t in texts(further)}


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_changed_records_have_the_same_keys_and_every_value_is_new(bits: int) -> None:
    versions = [replace(CONFIG, value_bits=[bits], version=version) for version in range(4)]
    for old, new in itertools.pairwise(versions):
        for i in range(50):
            before, after = record(old, i), record(new, i)
            assert before.key == after.key
            assert all(a != b for a, b in zip(before.values, after.values, strict=True))


def test_no_bits_means_one_value() -> None:
    config = replace(CONFIG, value_bits=[0, 3, 0, 1, 2], version=2)
    assert {record(config, i).values[0] for i in range(50)} == {value_word(0)}
    assert demand(config) == 50 * 6 and list(bits_of(config).values()) == [0, 3, 0, 1, 2]


@pytest.mark.parametrize("version", [0, 1])
def test_values_are_drawn_evenly_and_independently(version: int) -> None:
    config = replace(CONFIG, num_records=4096, value_bits=[2], num_attributes=2, version=version)
    pairs = Counter(tuple(record(config, i).values) for i in range(4096))
    assert len(pairs) == 16
    # chi-square with 15 degrees of freedom is beyond 37.7 once in a thousand
    assert sum((count - 256) ** 2 / 256 for count in pairs.values()) < 37.7


def test_every_round_says_each_record_once_in_an_order_of_its_own() -> None:
    found = texts(CONFIG)
    rounds = [found[i : i + 50] for i in range(0, 200, 50)]
    assert all({key_of(text) for text in each} == {key_of(t) for t in found} for each in rounds)
    orders = {tuple(key_of(text) for text in each) for each in rounds}
    assert len(orders) == 4
    of_one = [text.split()[2::2] for text in found if key_of(text) == key_of(found[0])]
    assert {frozenset(names) for names in of_one} == {frozenset(ATTRIBUTES[:5])}
    assert len({tuple(names) for names in of_one}) > 1


def test_a_document_is_the_key_then_attributes_and_values() -> None:
    for document in record_documents(CONFIG, "train"):
        text = document_text(document)
        words = text.split(" ")
        known = next(one for i in range(50) if (one := record(CONFIG, i)).key == key_of(text))
        said = dict(zip(words[2::2], words[3::2], strict=True))
        assert said == dict(zip(ATTRIBUTES, known.values, strict=False))
        counted = [piece.text for piece in document if piece.counts]
        assert counted == [f" {said[name]}" for name in words[2::2]]


def test_validation_text_says_the_same_in_one_more_order() -> None:
    trained, validation = texts(CONFIG), texts(CONFIG, "validation")
    assert len(validation) == 50 and not set(validation) & set(trained)
    assert sorted(map(facts_of, validation)) == sorted({facts_of(text) for text in trained})


def test_left_out_documents_are_other_exposures_of_the_same_records() -> None:
    config = replace(CONFIG, num_exposures=40, hold_out=0.05)
    kept, left = texts(config), texts(config, "validation")
    assert len(kept) + len(left) == 2000 and 50 <= len(left) <= 150
    assert {key_of(text) for text in left} <= {key_of(text) for text in kept}


def test_the_vocabulary_holds_every_word_of_a_document_and_no_word_twice() -> None:
    config = replace(CONFIG, value_bits=[1, 2, 3, 4, 5])
    known = vocabulary(config)
    assert len(known) == len(set(known)) == 64 + 64 + 5 + 32
    for text in texts(config):
        first, *rest = text.split(" ")
        assert {first, *(f" {word}" for word in rest)} <= set(known)
    values = [value_word(pick) for pick in range(4096)]
    assert len({*values, *KEY_WORDS, *ATTRIBUTES}) == 4096 + 64 + 32


def test_bits_are_one_for_all_or_one_for_each() -> None:
    with pytest.raises(ConfigError, match="value_bits has 2 entries; give one, or one for each"):
        next(iter(documents(replace(CONFIG, value_bits=[1, 2]), "train")))


def test_settings_of_other_kinds_change_nothing() -> None:
    key = source_key(CONFIG, "train")
    assert key == source_key(replace(CONFIG, num_people=7, column="other"), "train")
    for name in ("seed", "num_records", "first_record", "version", "key_words", "num_exposures"):
        changed = replace(CONFIG, **{name: getattr(CONFIG, name) + 1})
        assert source_key(changed, "train") != key, name
