"""Where values are said: the tokens that are counted spell the value, and no others."""

from __future__ import annotations

from math import log2
from pathlib import Path

import pytest

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data import facts
from moc.data.document import document_text
from moc.data.known import bits_of, demand, demands, known_documents
from moc.data.records import record
from moc.data.source import documents
from moc.data.tokenizer import Tokenizer, build_tokenizer

SOURCES = {
    "records": SourceConfig(kind="records", num_records=30, num_exposures=2),
    "people": SourceConfig(num_people=30, num_phrasings=2),
}


@pytest.fixture(scope="module", params=["bpe", "words"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    study = StudyConfig(
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        tokenizer=TokenizerConfig(kind=request.param, vocab_size=1500),
        data=SOURCES,
        phases={"one": PhaseConfig(mixture=dict.fromkeys(SOURCES, 1.0))},
    )
    return build_tokenizer(study)


def values_of(source: SourceConfig) -> dict[str, dict[str, str]]:
    """Key or name -> attribute -> value, by the sources' own account."""
    if source.kind == "records":
        found = (record(source, i) for i in range(source.num_records))
        return {one.key: dict(zip(bits_of(source), one.values, strict=True)) for one in found}
    return {person.name: person.values for person in facts.people(source)}


@pytest.mark.parametrize("name", SOURCES)
def test_counted_tokens_spell_the_values(tokenizer: Tokenizer, name: str) -> None:
    source = SOURCES[name]
    known = known_documents(source, tokenizer, 100)
    attributes = list(known.bits)
    assert len(known.ids) == known.num_all == 30 and len(set(known.labels)) == 30
    for label, ids, column in zip(known.labels, known.ids, known.column, strict=True):
        text = tokenizer.decode(ids)
        assert len(ids) == len(column)
        assert label in text
        for index, attribute in enumerate(attributes):
            tokens = [i for i, c in zip(ids, column, strict=True) if c == index]
            assert tokenizer.decode(tokens).strip() == values_of(source)[label][attribute]
        assert column[0] == -1  # the first token of a row is not predicted


@pytest.mark.parametrize("name", SOURCES)
def test_they_are_tokenised_as_in_training(tokenizer: Tokenizer, name: str) -> None:
    """Every sentence, or pair of attribute and value, occurs token by token in what is trained."""
    source = SOURCES[name]
    known = known_documents(source, tokenizer, 5)
    trained = [
        [token for piece in document for token in tokenizer.encode_texts([piece.text])[0]]
        for document in documents(source, "train")
    ]
    joined = [" ".join(map(str, ids)) for ids in trained]
    for ids, column in zip(known.ids, known.column, strict=True):
        for index in range(len(known.bits)):
            places = [place for place, c in enumerate(column) if c == index]
            value = " ".join(map(str, ids[places[0] : places[-1] + 1]))
            assert any(f" {value}" in text for text in joined)


def test_it_is_said_in_an_order_of_its_own(tokenizer: Tokenizer) -> None:
    """Of 120 orders a few are met again by chance."""
    for source in SOURCES.values():
        trained = {document_text(document) for document in documents(source, "train")}
        found = known_documents(source, tokenizer, 30)
        assert len(trained & {tokenizer.decode(ids) for ids in found.ids}) <= 3


def test_a_prefix_is_of_random_records(tokenizer: Tokenizer) -> None:
    few, all_of_them = (known_documents(SOURCES["records"], tokenizer, n) for n in (5, 30))
    assert few.labels == all_of_them.labels[:5] and few.num_all == 30
    assert few.labels != [record(SOURCES["records"], i).key for i in range(5)]


def test_demand_by_hand() -> None:
    assert demand(SOURCES["records"]) == 30 * 5 * 8
    per_person = log2(28 * 12 * 100) + 2 * log2(200) + log2(64) + log2(160)
    assert demand(SOURCES["people"]) == pytest.approx(30 * per_person)
    assert demand(SourceConfig(kind="skills")) == 0
    assert "employer_city" not in bits_of(SOURCES["people"])


def test_a_line_for_everyone_who_is_known_about(tmp_path: Path) -> None:
    questions = SourceConfig(num_people=30, documents="questions")
    study = StudyConfig(data=SOURCES | {"questions": questions, "s": SourceConfig(kind="skills")})
    assert demands(study) == [
        "records: 30 records x 40.0 bits of knowledge = 1,200 bits",
        "people: 30 people x 43.6 bits of knowledge = 1,309 bits",
    ]
