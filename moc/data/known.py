"""What sources of facts and records make a model know: how many bits, and where they are said."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import log2
from typing import NamedTuple

import numpy as np

from moc.config.data import SourceConfig
from moc.config.schema import StudyConfig
from moc.data import facts, records
from moc.data.document import Said
from moc.data.hashing import stable_hash
from moc.data.order import permute
from moc.data.tokenizer import Tokenizer

_KINDS = ("facts", "records")  # whose knowledge is known to the bit
_FOLLOWS = "employer_city"  # from the employer
_TURN = "known"  # a round that no pass has: said as in training, in one more order


class Known(NamedTuple):
    """Documents as token ids, and which tokens say which value. N documents, L tokens."""

    ids: list[list[int]]
    column: list[np.ndarray]  # of every token: of whose value it is a part, -1 of none
    labels: list[str]  # of the documents: who or what they are about
    bits: dict[str, float]  # attribute -> bits of one value, in the order of the columns
    num_all: int  # documents are the first N, in random order, of so many


def bits_of(config: SourceConfig) -> dict[str, float]:
    """Attribute -> bits that one value takes to know, given whose it is; empty for a source of
    another kind. The city of an employer follows from the employer, and is left out."""
    if config.kind == "records":
        bits = records.attribute_bits(config)
        return dict(zip(records.ATTRIBUTES, map(float, bits), strict=False))
    if config.kind == "facts":
        return {name: log2(size) for name, size in facts.POOL_SIZES.items() if name != _FOLLOWS}
    return {}


def num_known(config: SourceConfig) -> int:
    """How many there are to know about."""
    return config.num_records if config.kind == "records" else config.num_people


def demand(config: SourceConfig) -> float:
    """Bits of knowledge in the source, given the keys or names."""
    return num_known(config) * sum(bits_of(config).values())


def known_documents(config: SourceConfig, tokenizer: Tokenizer, most: int) -> Known:
    """The first ``most`` people or records, in random order, in sentences that are trained.

    Raises:
        ConfigError: if the source has fewer names or keys than it needs.
    """
    bits = bits_of(config)
    ids, column, labels = [], [], []
    for label, pieces in islice(_said(config), most):
        spans = _spans([part for piece in pieces for part in piece], list(bits))
        texts = ["".join(part.text for part in piece) for piece in pieces]
        starts = np.cumsum([0, *map(len, texts)])
        found = tokenizer.encode_pieces(texts)
        ids.append([token for tokens, _ in found for token in tokens])
        column.append(
            np.array(
                [
                    _column(first + start, last + start, spans)
                    for (_, offsets), start in zip(found, starts, strict=False)
                    for first, last in offsets
                ]
            )
        )
        labels.append(label)
    return Known(ids, column, labels, bits, num_known(config))


def bits_demanded(study: StudyConfig) -> dict[str, float]:
    """Source -> ``demand``, of those that have any."""
    return {
        name: demand(source)
        for name, source in study.data.items()
        if source.kind in _KINDS and source.documents == "all"  # else another's people
    }


def demands(study: StudyConfig) -> list[str]:
    """A line for every source whose knowledge is counted: how many bits there are to know."""
    return [
        f"{name}: {num_known(study.data[name]):,} "
        f"{'records' if study.data[name].kind == 'records' else 'people'} x "
        f"{sum(bits_of(study.data[name]).values()):.1f} bits of knowledge = {bits:,.0f} bits"
        for name, bits in bits_demanded(study).items()
    ]


def _said(config: SourceConfig) -> Iterator[tuple[str, list[list[Said]]]]:
    """Whom each document is about, and its text, in pieces as they are tokenised."""
    key = stable_hash(config.seed, _TURN)
    for i in range(num_known(config)):
        place = permute(i, num_known(config), key)
        if config.kind == "records":
            key_words = records.record(config, config.first_record + place).key
            yield key_words, [[part] for part in records.say(config, place, _TURN)]
        else:
            said = facts.say(config, place, "train", _TURN, list(bits_of(config)))
            yield facts.person(config, place).name, [said]


def _spans(said: list[Said], attributes: list[str]) -> list[tuple[int, int]]:
    """The first and the one after the last character of each attribute's value."""
    found, end = {}, 0
    for text, attribute in said:
        if attribute is not None:
            found[attribute] = (end, end + len(text))
        end += len(text)
    return [found[attribute] for attribute in attributes]


def _column(first: int, last: int, spans: list[tuple[int, int]]) -> int:
    """Whose value a token of those characters is a part of; -1: of none."""
    return next((i for i, (start, stop) in enumerate(spans) if first < stop and start < last), -1)
