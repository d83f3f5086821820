"""Records made for capacity: a key of a few words, and values of an exact number of bits each.

Nothing of a record follows from anything else, so a model can say a value only if it has stored it:
what the data demand, and what a model holds of it, are known to the bit. A record, and a document
of a pass over the source, are pure functions of the source's seed; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from moc.config.data import SourceConfig
from moc.data.document import Document, Piece, Said
from moc.data.hashing import Draws, stable_hash
from moc.data.order import permute
from moc.errors import ConfigError

ATTRIBUTES = """
color shape size taste smell sound weight metal flower tree bird fish stone cloth tool sport dance
drink fruit spice river island planet month engine letter number symbol habit craft mood price
""".split()  # noqa: SIM905
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"][:64]
KEY_WORDS = [f"{syllable.capitalize()}n" for syllable in _SYLLABLES]
MAX_BITS = 12  # of a value: two syllables


class Record(NamedTuple):
    number: int
    key: str
    values: list[str]  # one per attribute, in the attributes' order


def record(config: SourceConfig, index: int) -> Record:
    """Record ``index`` of all that the seed can make. Keys are unique: a permutation of all."""
    rest = permute(index, len(KEY_WORDS) ** config.key_words, stable_hash(config.seed, "key"))
    words = []
    for _ in range(config.key_words):
        rest, word = divmod(rest, len(KEY_WORDS))
        words.append(KEY_WORDS[word])
    return Record(index, " ".join(words), [value_word(pick) for pick in _picks(config, index)])


def attribute_bits(config: SourceConfig) -> list[int]:
    """Bits of every attribute's value.

    Raises:
        ConfigError: if ``value_bits`` has neither one entry nor one per attribute.
    """
    bits = config.value_bits
    if len(bits) not in (1, config.num_attributes):
        raise ConfigError(
            f"value_bits has {len(bits)} entries; give one, or one for each of the "
            f"{config.num_attributes} attributes (num_attributes)"
        )
    return bits * config.num_attributes if len(bits) == 1 else list(bits)


def record_documents(config: SourceConfig, split: str) -> Iterator[Document]:
    """One pass over the source: ``num_exposures`` rounds over all records, each in an order of its
    own. Validation: everyone once more. There is nothing that could be held out, since no record
    says anything of another: it is what is trained, in one more order.

    Raises:
        ConfigError: if there are fewer keys than records.
    """
    _check(config)
    rounds = range(config.num_exposures) if split == "train" else [split]
    return (
        record_document(config, permute(i, config.num_records, _order(config, turn)), turn)
        for turn in rounds
        for i in range(config.num_records)
    )


def record_document(config: SourceConfig, place: int, turn: object) -> Document:
    """The source's record at ``place`` as round ``turn`` says it. Its values alone count for the
    loss of ``loss_on: assistant``."""
    return [Piece(part.text, part.attribute is not None) for part in say(config, place, turn)]


def say(config: SourceConfig, place: int, turn: object) -> list[Said]:
    """The key, then attributes and values in random order."""
    one = record(config, config.first_record + place)
    draws = Draws(config.seed, "attributes", turn, one.number, config.version)
    said, text = [], one.key
    for index in draws.sample(range(config.num_attributes), config.num_attributes):
        name = ATTRIBUTES[index]
        said += [Said(f"{text} {name}"), Said(f" {one.values[index]}", name)]
        text = ""
    return said


def vocabulary(config: SourceConfig) -> list[str]:
    """Everything that its documents are made of, with the space before a word."""
    most = 2 ** max(attribute_bits(config))
    later = KEY_WORDS if config.key_words > 1 else []
    words = [*later, *ATTRIBUTES[: config.num_attributes], *map(value_word, range(most))]
    return [*KEY_WORDS, *(f" {word}" for word in words)]


def value_word(pick: int) -> str:
    """The word for value number ``pick``, whatever the attribute."""
    high, low = divmod(pick, len(_SYLLABLES))
    return _SYLLABLES[high] + _SYLLABLES[low]


def _picks(config: SourceConfig, index: int) -> list[int]:
    """Which value of each attribute: of a later version, never that of the one before."""
    bits = attribute_bits(config)
    draws = Draws(config.seed, "values", index)
    picks = [draws.below(2**b) for b in bits]
    for version in range(1, config.version + 1):
        draws = Draws(config.seed, "values", index, version)
        moves = [1 + draws.below(2**b - 1) if b else 0 for b in bits]
        picks = [(p + move) % 2**b for p, move, b in zip(picks, moves, bits, strict=True)]
    return picks


def _order(config: SourceConfig, turn: object) -> int:
    return stable_hash(config.seed, "records", turn, config.first_record, config.version)


def _check(config: SourceConfig) -> None:
    attribute_bits(config)
    num_keys = len(KEY_WORDS) ** config.key_words
    if config.first_record + config.num_records > num_keys:
        raise ConfigError(
            f"key_words {config.key_words} makes {num_keys:,} keys, fewer than first_record + "
            f"num_records {config.first_record + config.num_records:,}; raise key_words"
        )
