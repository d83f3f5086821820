"""Synthetic people: biographies and questions in the style of bioS.

Allen-Zhu and Li, "Physics of Language Models", parts 3.1 (arXiv 2309.14316) and 3.3 (2404.05405).
Person i of a source, and document number d of a pass over it, are pure functions of the source's
seed: nothing is stored, so ten million people take no more memory than a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from math import floor
from typing import NamedTuple

from moc.config.data import SourceConfig
from moc.data import facts_text as text
from moc.data.document import Document, Said, plain_document
from moc.data.hashing import Draws, stable_hash
from moc.data.order import permute
from moc.errors import ConfigError

# The day is at most 28, so that every combination of day, month and year is a date.
_NUM_DAYS, _FIRST_YEAR, _NUM_YEARS = 28, 1900, 100
_NUM_EMPLOYERS = len(text.EMPLOYER_NAMES) * len(text.EMPLOYER_TRADES)
_NUM_MIDDLE = len(text.FIRST_NAMES) - 1  # a middle name is a first name other than one's own
CAPACITY = len(text.FIRST_NAMES) * _NUM_MIDDLE * len(text.LAST_NAMES)  # different full names

# How many values each attribute has. The employer's city follows from the employer.
POOL_SIZES = {
    "birth_date": _NUM_DAYS * len(text.MONTHS) * _NUM_YEARS,
    "birth_city": len(text.CITIES),
    "university": len(text.CITIES),
    "major": len(text.MAJORS),
    "employer": _NUM_EMPLOYERS,
    "employer_city": _NUM_EMPLOYERS,
}
ATTRIBUTES = tuple(POOL_SIZES)
QUESTION_RATIO = 0.5  # trained question documents per biography, of the people who are asked about
_SENTENCES = {name: text.TEMPLATES[name].strip().splitlines() for name in ATTRIBUTES}


class Person(NamedTuple):
    person_id: int
    name: str
    values: dict[str, str]  # attribute -> value


class Question(NamedTuple):
    person_id: int
    attribute: str
    question: str
    answer: str
    choices: list[str]  # four different values of the attribute, the answer among them
    label: int  # the answer's index in choices


def person(config: SourceConfig, person_id: int) -> Person:
    """Who ``person_id`` is. Full names are unique: a permutation of all of them, cut off."""
    rest, last = divmod(permute(person_id, CAPACITY, config.seed), len(text.LAST_NAMES))
    first, middle = divmod(rest, _NUM_MIDDLE)
    second = text.FIRST_NAMES[(first + 1 + middle) % len(text.FIRST_NAMES)]
    draws = Draws(config.seed, "person", person_id)
    picks = {name: draws.below(size) for name, size in POOL_SIZES.items()}
    picks["employer_city"] = picks["employer"]
    values = {name: _value(name, pick) for name, pick in picks.items()}
    return Person(person_id, f"{text.FIRST_NAMES[first]} {second} {text.LAST_NAMES[last]}", values)


def people(config: SourceConfig) -> Iterator[Person]:
    """Everyone, by id.

    Raises:
        ConfigError: if there are fewer names than people.
    """
    _check(config)
    return (person(config, i) for i in range(config.num_people))


def fact_documents(config: SourceConfig, split: str) -> Iterator[Document]:
    """One pass over the source.

    Train: ``num_phrasings`` rounds over all people, each round in an order of its own, so that
    every prefix covers people equally. After a biography may come question documents, about
    *another* person: the answer is never in the text just before. With ``documents: questions``
    only these question documents, of which one pass may have few. Validation: everyone's biography
    once, in sentences that training never uses.

    Raises:
        ConfigError: if there are fewer names than people, or no question to train.
    """
    _check(config)
    if split == "validation":
        return (_biography(config, "validation", 0, i) for i in range(config.num_people))
    return _train_documents(config)


def is_trained(config: SourceConfig, person_id: int) -> bool:
    """Whether this person's questions are in the training documents."""
    rank = permute(person_id, config.num_people, stable_hash(config.seed, "trained"))
    return rank < round(config.question_share * config.num_people)


def fact_questions(config: SourceConfig, *, trained: bool) -> Iterator[Question]:
    """Every question about people whose questions are (or are not) trained; a prefix covers
    many people and, evenly, all attributes.

    Raises:
        ConfigError: if there are fewer names than people.
    """
    _check(config)
    key = stable_hash(config.seed, "questions")
    for turn in range(len(ATTRIBUTES)):
        asked = 0
        for i in range(config.num_people):
            person_id = permute(i, config.num_people, key)
            if is_trained(config, person_id) == trained:
                attribute = ATTRIBUTES[(asked + turn) % len(ATTRIBUTES)]
                asked += 1
                yield _question(config, person(config, person_id), attribute)


def question_text(name: str, attribute: str) -> str:
    """The one wording in which an attribute is asked for, in training and in evaluation."""
    return f"What is the {attribute.replace('_', ' ')} of {name}?"


def _train_documents(config: SourceConfig) -> Iterator[Document]:
    for turn in range(config.num_phrasings):
        order = stable_hash(config.seed, "questions", turn)
        for i in range(config.num_people):
            if config.documents == "all":
                yield _biography(config, "train", turn, i)
            asked = permute(i, config.num_people, order)
            if is_trained(config, asked):
                yield from _question_documents(config, asked, turn)


def _biography(config: SourceConfig, split: str, turn: int, place: int) -> Document:
    """Of whoever comes at ``place`` in the random order of round ``turn``."""
    order = stable_hash(config.seed, split, turn)
    person_id = permute(place, config.num_people, order)
    said = say(config, person_id, split, turn, ATTRIBUTES)
    return plain_document("".join(part.text for part in said))


def say(
    config: SourceConfig, person_id: int, split: str, turn: object, attributes: Sequence[str]
) -> list[Said]:
    """A sentence for each of ``attributes``, in random order, in words of ``split``."""
    someone = person(config, person_id)
    draws = Draws(config.seed, split, turn, person_id)
    said: list[Said] = []
    for attribute in draws.sample(attributes, len(attributes)):
        sentence = draws.choice(sentences_of(attribute, split))
        words = f"{' ' * bool(said)}{sentence}".split("{value}")
        before, after = (part.format(name=someone.name) for part in words)
        said += [Said(before), Said(someone.values[attribute], attribute), Said(after)]
    return said


def sentences_of(attribute: str, split: str) -> list[str]:
    """The templates that ``split`` uses; the two splits share none."""
    sentences = _SENTENCES[attribute]
    unseen = text.NUM_UNSEEN
    return sentences[-unseen:] if split == "validation" else sentences[:-unseen]


def _question_documents(config: SourceConfig, person_id: int, turn: int) -> Iterator[Document]:
    """This turn's share of ``QUESTION_RATIO`` documents per biography, all attributes in each."""
    phase = stable_hash(config.seed, "question phase", person_id) / 2**64  # spreads people's turns
    first = floor(turn * QUESTION_RATIO + phase)
    for number in range(first, floor((turn + 1) * QUESTION_RATIO + phase)):
        someone = person(config, person_id)
        draws = Draws(config.seed, "question order", person_id, number)
        yield plain_document(
            "\n\n".join(
                f"Question: {question_text(someone.name, name)}\nAnswer: {someone.values[name]}"
                for name in draws.sample(ATTRIBUTES, len(ATTRIBUTES))
            )
        )


def _question(config: SourceConfig, someone: Person, attribute: str) -> Question:
    answer = someone.values[attribute]
    draws = Draws(config.seed, "choices", someone.person_id, attribute)
    others: list[str] = []
    # Wrong choices are other people's values: values that occur nowhere in the text would be cut
    # into more tokens, and an untrained model would already find the right one by its length.
    for attempt in count():
        if len(others) == 3:
            break
        if attempt < 100:
            value = person(config, draws.below(config.num_people)).values[attribute]
        else:  # too few people for three others
            value = _value(attribute, draws.below(POOL_SIZES[attribute]))
        if value != answer and value not in others:
            others.append(value)
    label = draws.below(4)
    choices = [*others[:label], answer, *others[label:]]
    question = question_text(someone.name, attribute)
    return Question(someone.person_id, attribute, question, answer, choices, label)


def _value(attribute: str, pick: int) -> str:
    """Value number ``pick`` of the attribute's pool."""
    match attribute:
        case "birth_date":
            rest, day = divmod(pick, _NUM_DAYS)
            year, month = divmod(rest, len(text.MONTHS))
            return f"{text.MONTHS[month]} {day + 1}, {_FIRST_YEAR + year}"
        case "birth_city":
            return text.CITIES[pick]
        case "university":
            return f"{text.CITIES[pick]} University"
        case "major":
            return text.MAJORS[pick]
        case "employer":
            name, trade = divmod(pick, len(text.EMPLOYER_TRADES))
            return f"{text.EMPLOYER_NAMES[name]} {text.EMPLOYER_TRADES[trade]}"
        case _:
            assert attribute == "employer_city"
            # 77 shares no factor with the number of cities: every employer has a city of its own
            return text.CITIES[(pick * 77 + 5) % len(text.CITIES)]


def _check(config: SourceConfig) -> None:
    if not 1 <= config.num_people <= CAPACITY:
        raise ConfigError(
            f"num_people must be from 1 to {CAPACITY:,}, the number of different names, "
            f"not {config.num_people:,}"
        )
    if config.num_phrasings < 1:
        raise ConfigError(f"num_phrasings must be at least 1, not {config.num_phrasings}")
    if not 0 <= config.question_share <= 1:
        raise ConfigError(f"question_share must be from 0 to 1, not {config.question_share}")
    if config.documents == "questions" and not round(config.question_share * config.num_people):
        raise ConfigError(
            f"documents: questions has none with question_share {config.question_share} of "
            f"{config.num_people} people; raise it"
        )
