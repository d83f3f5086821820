"""Synthetic people: unique, reproducible, and split so that evaluation asks nothing it trained."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections import Counter
from dataclasses import replace

import pytest

from moc.config.data import SourceConfig
from moc.data import facts, facts_text
from moc.data.document import document_text
from moc.data.source import source_key
from moc.errors import ConfigError

CONFIG = SourceConfig(num_people=60, num_phrasings=10, seed=5)


def texts(config: SourceConfig, split: str = "train") -> list[str]:
    return [document_text(document) for document in facts.fact_documents(config, split)]


def test_names_are_unique() -> None:
    config = SourceConfig(num_people=20_000)
    assert len({person.name for person in facts.people(config)}) == 20_000


def test_there_are_names_for_ten_million_people_and_no_more_than_there_are() -> None:
    assert facts.CAPACITY >= 10_000_000
    with pytest.raises(ConfigError, match=f"{facts.CAPACITY:,}"):
        facts.people(SourceConfig(num_people=facts.CAPACITY + 1))


def test_person_i_does_not_depend_on_how_many_there_are() -> None:
    few, many = SourceConfig(num_people=10), SourceConfig(num_people=10_000_000)
    assert facts.person(few, 7) == facts.person(many, 7)
    assert facts.person(few, 7) != facts.person(SourceConfig(seed=1), 7)


def test_pools_and_templates_hold_no_duplicates() -> None:
    for pool in (facts_text.FIRST_NAMES, facts_text.LAST_NAMES, facts_text.CITIES):
        assert len(set(pool)) == len(pool)
    assert len(set(facts_text.MAJORS)) == len(facts_text.MAJORS)
    for attribute, size in facts.POOL_SIZES.items():
        if size < 1000:
            assert len({facts._value(attribute, pick) for pick in range(size)}) == size
    templates = [line for text in facts_text.TEMPLATES.values() for line in text.split("\n")[1:-1]]
    assert len(set(templates)) == len(templates) == 6 * 24


def test_values_are_drawn_evenly_and_the_city_follows_from_the_employer() -> None:
    everyone = list(facts.people(SourceConfig(num_people=6400)))
    majors = Counter(person.values["major"] for person in everyone)
    assert len(majors) == 64 and all(50 < count < 160 for count in majors.values())  # 100 expected
    pairs = {(person.values["employer"], person.values["employer_city"]) for person in everyone}
    assert len(pairs) == len({employer for employer, _ in pairs}) == 160


def test_a_biography_states_every_attribute_once_with_the_full_name() -> None:
    everyone = {person.name: person for person in facts.people(CONFIG)}
    biographies = [text for text in texts(CONFIG) if not text.startswith("Question")]
    for biography in biographies:
        (name,) = [name for name in everyone if name in biography]
        assert biography.count(name) == 6
        for attribute, value in everyone[name].values.items():
            templates = facts_text.TEMPLATES[attribute].strip().splitlines()[:-4]
            sentences = [line.format(name=name, value=value) for line in templates]
            said = (biography + " ").split(". ")
            assert sum(sentence[:-1] in said for sentence in sentences) == 1


def test_every_round_covers_everyone_in_another_order() -> None:
    names = [re.findall(r"(?:[A-Z][a-z]+ ){2}[A-Z][a-z]+", t) for t in texts(CONFIG)]
    everyone = {person.name for person in facts.people(CONFIG)}
    described = [
        next(name for name in everyone if any(name in found for found in row))
        for row, text in zip(names, texts(CONFIG), strict=True)
        if not text.startswith("Question")
    ]
    rounds = [described[i : i + 60] for i in range(0, 600, 60)]
    assert len(rounds) == 10 and all(set(names) == everyone for names in rounds)
    assert len({tuple(names) for names in rounds}) == 10


def test_sentence_order_varies() -> None:
    config = SourceConfig(num_people=1, num_phrasings=200, question_share=0)
    first = Counter(
        next(
            attribute
            for attribute in facts.ATTRIBUTES
            for template in facts.sentences_of(attribute, "train")
            if text.startswith(template.format(**{"name": name, "value": values[attribute]}))
        )
        for text in texts(config)
        for name, values in [facts.person(config, 0)[1:]]
    )
    assert len(first) == 6 and min(first.values()) > 10  # 33 expected


def test_validation_phrasings_are_never_trained() -> None:
    trained = " ".join(texts(CONFIG))
    unseen = texts(CONFIG, "validation")
    assert len(unseen) == CONFIG.num_people
    for text in unseen:
        for sentence in text[:-1].split(". "):
            assert sentence + "." not in trained


def test_questions_of_the_extraction_split_are_never_trained() -> None:
    trained = "\n\n".join(text for text in texts(CONFIG) if text.startswith("Question"))
    known = list(facts.fact_questions(CONFIG, trained=True))
    held_out = list(facts.fact_questions(CONFIG, trained=False))
    assert len(known) == len(held_out) == 30 * 6  # half of 60 people, six questions each
    for question in known:
        line = f"Question: {question.question}\nAnswer: {question.answer}"
        assert trained.count(line) == 5  # one for every two of ten biographies
    for question in held_out:
        name = facts.person(CONFIG, question.person_id).name
        assert name not in trained and name in question.question


def test_an_answer_is_not_in_the_document_just_before_its_question() -> None:
    documents = texts(SourceConfig(num_people=500, num_phrasings=4))
    pairs = [(a, b) for a, b in itertools.pairwise(documents) if b.startswith("Question")]
    names = [b.split("?")[0].split(" of ")[1] for _, b in pairs]
    assert len(pairs) == 500
    assert sum(name in before for name, (before, _) in zip(names, pairs, strict=True)) < 10


def test_everybody_may_be_asked_about() -> None:
    config = SourceConfig(num_people=8, num_phrasings=4, question_share=1)
    questions = [text for text in texts(config) if text.startswith("Question")]
    assert len(questions) == 8 * 4 * 0.5  # one for every two biographies
    assert all(text.count("Question: ") == text.count("\nAnswer: ") == 6 for text in questions)


def test_questions_alone_are_those_that_are_trained_and_no_others() -> None:
    """A probe for recovery must show the model nothing about the people whom it is asked about."""
    alone = texts(replace(CONFIG, documents="questions"))
    assert alone == [text for text in texts(CONFIG) if text.startswith("Question")]
    assert len(alone) == 30 * 5
    held_out = {
        facts.person(CONFIG, question.person_id).name
        for question in facts.fact_questions(CONFIG, trained=False)
    }
    assert len(held_out) == 30 and not any(name in text for name in held_out for text in alone)
    unseen = texts(replace(CONFIG, documents="questions"), "validation")
    assert unseen == texts(CONFIG, "validation")


def test_questions_alone_are_another_source_to_the_token_cache() -> None:
    alone = replace(CONFIG, documents="questions")
    assert source_key(alone, "train") != source_key(CONFIG, "train")


def test_no_questions_to_train_alone() -> None:
    with pytest.raises(ConfigError, match="documents: questions has none"):
        texts(replace(CONFIG, documents="questions", question_share=0.0))


def test_choices_are_four_values_of_the_attribute_with_the_label_anywhere() -> None:
    labels = Counter()
    for question in facts.fact_questions(SourceConfig(num_people=400), trained=False):
        assert len(set(question.choices)) == 4
        assert question.choices[question.label] == question.answer
        value = facts.person(SourceConfig(), question.person_id).values[question.attribute]
        assert value == question.answer
        labels[question.label] += 1
    assert all(240 < labels[i] < 360 for i in range(4))  # 300 expected


def test_the_first_questions_cover_all_attributes_and_many_people() -> None:
    first = list(itertools.islice(facts.fact_questions(CONFIG, trained=False), 30))
    assert len({question.person_id for question in first}) == 30
    assert set(Counter(question.attribute for question in first).values()) == {5}


def test_ten_million_people_take_no_more_memory_than_a_hundred() -> None:
    def peak(num_people: int) -> int:
        tracemalloc.start()
        config = SourceConfig(num_people=num_people)
        for document in itertools.islice(facts.fact_documents(config, "train"), 1000):
            assert document
        for question in itertools.islice(facts.fact_questions(config, trained=False), 50):
            assert question
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(100)  # whatever is allocated once
    assert peak(10_000_000) < peak(100) + 100_000


def test_people_are_the_ones_of_earlier_versions() -> None:
    """If this changes, a saved model's facts would no longer be the evaluated ones."""
    assert facts.person(SourceConfig(), 0).name == "Joan Gina Black"
