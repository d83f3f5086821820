"""A document: text in pieces, each of which counts for the loss or does not. The chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

END_OF_TEXT = "<|endoftext|>"  # between documents
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"  # ChatML

Message = dict[str, str]  # {"role": ..., "content": ...}


class Piece(NamedTuple):
    """Consecutive text of a document."""

    text: str
    counts: bool = True  # for the loss, when a phase trains on assistant tokens only
    control: bool = False  # one control token of the template; other text never becomes one


Document = list[Piece]


class Said(NamedTuple):
    """Consecutive text of a document: of which attribute it is the value, if of any."""

    text: str
    attribute: str | None = None


def plain_document(text: str) -> Document:
    return [Piece(text)]


def chat_document(messages: Sequence[Message]) -> Document:
    """ChatML in which only the assistant's words, and the end of its turn, count for the loss."""
    pieces = []
    for message in messages:
        counts = message["role"] == "assistant"
        pieces += [Piece(TURN_START, False, True), Piece(f"{message['role']}\n", False)]
        pieces += [Piece(message["content"], counts), Piece(TURN_END, counts, True)]
        pieces += [Piece("\n", False)]
    return pieces


def chat_prompt(messages: Sequence[Message]) -> str:
    """The same template as text, up to where the assistant's next turn starts."""
    return document_text(chat_document(messages)) + f"{TURN_START}assistant\n"


def document_text(document: Document) -> str:
    return "".join(piece.text for piece in document)
