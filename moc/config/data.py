"""The ``data:`` and ``tokenizer:`` sections of a study. The comment beside a field documents it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from moc.ranges import Range


@dataclass
class TokenizerConfig:
    path: str | None = None  # a Hugging Face tokenizer by name or folder; null: train our own
    # bpe: byte-level; words: whole words of a closed vocabulary (every word of records, then the
    # most frequent ones of other sources; any other word is one unknown token)
    kind: Literal["bpe", "words"] = "bpe"
    # of the trained one, at most; itself at most model.vocab_size
    vocab_size: Annotated[int, Range(8, 10**7)] = 2048
    # of the study's own training text, per source
    training_bytes: Annotated[int, Range(1, 10**12)] = 4_000_000


@dataclass
class SourceConfig:
    """One named source of documents. Fields that its kind does not use are ignored by it."""

    kind: Literal["facts", "records", "skills", "text", "chat"] = "facts"
    seed: Annotated[int, Range(-(2**31), 2**32 - 1)] = 0  # of everything generated or split off
    # facts: synthetic people; records: keys with values of so many bits; skills: instructions
    num_people: Annotated[int, Range(1, 10**9)] = 1000  # facts: how many people exist
    # facts: biographies per person in one pass over the source
    num_phrasings: Annotated[int, Range(1, 10**6)] = 50
    # facts: share of the people whose questions are trained
    question_share: Annotated[float, Range(0, 1)] = 0.5
    documents: Literal["all", "questions"] = "all"  # facts: or the trained questions alone
    # records: how many there are, of all those that the seed makes, from this one on
    num_records: Annotated[int, Range(1, 10**9)] = 1000
    first_record: Annotated[int, Range(0, 10**9)] = 0
    # records: another one gives every key other values
    version: Annotated[int, Range(0, 1000)] = 0
    key_words: Annotated[int, Range(1, 8)] = 3  # records: words of a key
    num_attributes: Annotated[int, Range(1, 32)] = 5  # records: values per record
    # records: a value is one of 2^b words; one b for all attributes, or one for each
    value_bits: Annotated[list[int], Range(0, 12)] = field(default_factory=lambda: [8])
    # records: times that each occurs in one pass, its attributes in an order of their own
    num_exposures: Annotated[int, Range(1, 10**6)] = 100
    # skills: instructions in one pass over the source
    num_examples: Annotated[int, Range(1, 10**9)] = 20_000
    # text and chat: files, or a dataset on the Hugging Face hub
    path: str | None = None  # a file or glob: .txt .md .jsonl .parquet
    validation_path: str | None = None  # null: hold out validation_fraction of the documents
    validation_fraction: Annotated[float, Range(0, 1, without="high")] = 0.01
    name: str | None = None  # a hub dataset, streamed; used when path is null
    subset: str | None = None  # of the hub dataset
    split: str = "train"
    validation_split: str | None = None  # null: hold out validation_fraction
    column: str = "text"  # text: the column or JSON key that holds the document
    # share of the training documents that are left out and stand for the validation text (what
    # moc tune sets in its trials)
    hold_out: Annotated[float, Range(0, 0.5)] = 0.0
